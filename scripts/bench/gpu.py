"""Run the GPU tests on a machine with one GPU and measure transitions per second there; writes JSON and a table.

    scripts/bench/gpu.sh --out runs/gpu

It times the emulators alone, then the training of PPO at 8 × 128 and 256 × 128 and of A2C at 1024 × 5, in three
precisions, with and without measuring. Each shape has a process of its own, which starts its emulators once (a thousand
take minutes). When its time is over, the results so far are kept. Nothing is downloaded. On a CPU it rehearses the same
with few environments.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from typing import Any, Literal, NamedTuple

ROOT = Path(__file__).parents[2]
TESTS = "tests/support/device_checks.py"

PRECISIONS = ("float32", "tensorfloat32", "bfloat16")

PUBLISHED = {"CleanRL": 1022, "LeanRL": 3728, "LeanRL, compiled with CUDA graphs": 6809}
"""Steps per second of PPO on Atari, one H100, TF32, by the README of LeanRL (github.com/pytorch-labs/LeanRL)."""


class Shape(NamedTuple):
    """Algorithm and batch shape, and the share of the remaining time that its process may take."""

    algo: Literal["a2c", "ppo"]
    num_envs: int
    num_steps: int
    share: float

    def __str__(self) -> str:
        return f"{self.algo.upper()} {self.num_envs} × {self.num_steps}"


SHAPES = (Shape("ppo", 8, 128, 0.4), Shape("ppo", 256, 128, 0.45), Shape("a2c", 1024, 5, 1.0))
REHEARSED = (Shape("ppo", 4, 8, 0.4), Shape("ppo", 8, 8, 0.45), Shape("a2c", 8, 5, 1.0))


@dataclass(frozen=True)
class Options:
    """Options of the benchmark."""

    device: Literal["cuda", "cpu"] = "cuda"
    """Device of the networks."""
    seconds: float = 8.0
    """Seconds of each timing, after one update to warm up; at least one update is timed."""
    total_seconds: float = 450.0
    """Seconds for the whole benchmark; what is not timed by then is left out."""
    test_seconds: float = 120.0
    """Seconds of these that the GPU tests may take."""
    out: Path = Path("runs/gpu")
    """Directory for gpu.json and gpu.md."""
    shape: int | None = None
    """Time only the shape with this number and print its rows as JSON; the benchmark starts itself in this way."""


def main(options: Options) -> int:
    """Run the tests and the timings, write and print the results.

    Returns:
        The exit code: 0 if the tests passed and training was timed at every shape, 1 if not, 2 without a CUDA device.
    """
    if options.shape is not None:
        for row in measure(_shapes(options)[options.shape], options):
            print(json.dumps(row), flush=True)
        return 0
    import torch

    if options.device == "cuda" and not torch.cuda.is_available():
        print("error: there is no CUDA device; --device cpu rehearses this with few environments", file=sys.stderr)
        return 2
    deadline = time.monotonic() + options.total_seconds
    tests = run_tests(min(options.test_seconds, options.total_seconds / 3))
    print(f"tests: {tests['words']}", flush=True)
    rows: list[dict[str, Any]] = []
    for number, shape in enumerate(_shapes(options)):
        left = (deadline - time.monotonic()) * shape.share
        new_rows = list(rows_of_process(options, number, left)) if left > 1 else []
        rows += new_rows or [{"shape": str(shape), "what": f"nothing within {max(0.0, left):.0f} s"}]
        print("\n".join(_line(row) for row in rows[-max(1, len(new_rows)) :]), flush=True)
    write(options, {"machine": machine(options.device), "tests": tests, "rows": rows, "published": PUBLISHED})
    trained = {row["shape"] for row in rows if row["what"] == "training" and "speed" in row}
    is_complete = trained == set(map(str, _shapes(options)))
    return int(not (is_complete and tests["exit_code"] == 0))


def _shapes(options: Options) -> tuple[Shape, ...]:
    return SHAPES if options.device == "cuda" else REHEARSED


def run_tests(seconds: float) -> dict[str, Any]:
    """Run the tests that need a GPU.

    Returns:
        `exit_code` of pytest, None if it was stopped after so many seconds, and its last line as `words`.
    """
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "--no-header", TESTS]
    try:
        process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return {"exit_code": None, "words": f"not done within {seconds:.0f} s"}
    last = (process.stdout.strip() or process.stderr.strip() or "no output").splitlines()[-1]
    return {"exit_code": process.returncode, "words": last.strip("= ")}


def rows_of_process(options: Options, number: int, seconds: float) -> Iterator[dict[str, Any]]:
    """Rows about one shape, from a process of its own that is killed after so many seconds."""
    command = [
        sys.executable, __file__, "--shape", str(number), "--device", options.device, "--seconds", str(options.seconds)
    ]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        timer = threading.Timer(seconds, process.kill)
        timer.start()
        try:
            assert process.stdout
            for line in process.stdout:
                if line.startswith("{"):
                    yield json.loads(line)
        finally:
            timer.cancel()
            process.kill()


def measure(shape: Shape, options: Options) -> Iterator[dict[str, Any]]:
    """Time one shape: a row for the emulators alone, and one for each precision with and without measuring."""
    sys.path.insert(0, str(ROOT))
    from rlgns.agents.config import TrainConfig, resolved
    from rlgns.agents.environments import make_environments
    from rlgns.runs.machine import keep_freed_memory

    keep_freed_memory()
    common: dict[str, Any] = {"algo": shape.algo, "num_envs": shape.num_envs, "num_steps": shape.num_steps}
    common |= {"device": options.device, "total_transitions": 10**9, "wandb": "disabled"}
    common |= {"num_parts": 2 if options.device == "cuda" else 1}  # the defaults of training
    with closing(make_environments(resolved(TrainConfig(**common)), seed=0)) as environments:
        speed = emulate(environments, options.seconds)
        yield {"shape": str(shape), "what": "emulators alone", "speed": speed}
        for measuring, precision in product((False, True), PRECISIONS):
            row = {"shape": str(shape), "what": "training", "precision": precision, "measuring": measuring}
            config = resolved(TrainConfig(**common, precision=precision, measure=measuring))
            try:
                yield row | train(config, environments, options.seconds)
            except (ValueError, RuntimeError) as error:  # a precision or an amount of memory that this device lacks
                yield row | {"error": " ".join(str(error).split())[:200]}


def emulate(environments: Any, seconds: float) -> float:
    """Transitions per second of the emulators under random actions."""
    import numpy as np

    environments.reset()
    size = 97, environments.num_envs
    actions = np.random.default_rng(0).integers(environments.action_space.n, size=size)
    environments.step(actions[0])
    started, steps = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        environments.step(actions[steps % len(actions)])
        steps += 1
    return steps * environments.num_envs / (time.perf_counter() - started)


def train(config: Any, environments: Any, seconds: float) -> dict[str, float]:
    """Transitions per second of whole updates, records included, after one to warm up."""
    from rlgns.agents.timed_loop import measured_model
    from rlgns.runs.sinks import JsonLines

    with tempfile.TemporaryDirectory() as folder:
        records = JsonLines(Path(folder) / "metrics.jsonl")
        try:
            model, callback = measured_model(config, environments, records)

            def learn(updates: int) -> None:
                transitions = updates * config.batch_size
                model.learn(transitions, callback=callback, log_interval=None, reset_num_timesteps=False)

            learn(1)
            at_once, updates, started = max(1, 200 // config.batch_size), 0, time.perf_counter()
            while not updates or time.perf_counter() - started < seconds:
                learn(at_once)
                updates += at_once
            passed = time.perf_counter() - started
        finally:
            records.finish({})
    return {"speed": updates * config.batch_size / passed, "updates": updates}


def machine(device: str) -> dict[str, Any]:
    """Date, hardware and versions that the numbers belong to."""
    import torch

    return {
        "date": datetime.now(UTC).date().isoformat(),
        "gpu": torch.cuda.get_device_name(0) if device == "cuda" else None,
        "cpu_count": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
    }


def write(options: Options, results: dict[str, Any]) -> None:
    """Write gpu.json and gpu.md, and print the table."""
    options.out.mkdir(parents=True, exist_ok=True)
    content = {"options": {name: str(value) for name, value in asdict(options).items()}, **results}
    (options.out / "gpu.json").write_text(json.dumps(content, indent=1) + "\n")
    (options.out / "gpu.md").write_text(table(results))
    print(f"\n{table(results)}\n{options.out / 'gpu.json'}   {options.out / 'gpu.md'}")


def table(results: dict[str, Any]) -> str:
    """The results as a Markdown table."""
    machine, rows = results["machine"], results["rows"]
    lines = [
        f"{machine['gpu'] or 'No GPU: a rehearsal with few environments'}, {machine['cpu_count']} CPU cores, "
        f"torch {machine['torch']}, {machine['date']}; GPU tests: {results['tests']['words']}",
        "",
        "| transitions/s | emulators alone | " + " | ".join(f"{p}, {m}" for m, p in product(_MODES, PRECISIONS)) + " |",
        "|---|---:|" + "---:|" * (len(_MODES) * len(PRECISIONS)),
    ]
    for shape in dict.fromkeys(row["shape"] for row in rows):
        speeds = {
            (row.get("measuring"), row.get("precision")): row.get("speed") for row in rows if row["shape"] == shape
        }
        cells = [speeds.get((None, None)), *(speeds.get((m, p)) for m, p in product(_MODES.values(), PRECISIONS))]
        lines.append(f"| {shape} | " + " | ".join("–" if cell is None else f"{cell:,.0f}" for cell in cells) + " |")
    published = ", ".join(f"{name} {speed:,}" for name, speed in results["published"].items())
    return "\n".join([*lines, "", f"Published for PPO 8 × 128 on one H100 in TF32: {published} steps/s (LeanRL).", ""])


_MODES = {"not measuring": False, "measuring": True}


def _line(row: dict[str, Any]) -> str:
    words = [row["shape"], row["what"], row.get("precision", "")]
    words += ["measuring" if row["measuring"] else "not measuring"] if "measuring" in row else []
    result = f"{row['speed']:,.0f} transitions/s" if "speed" in row else row.get("error", "")
    return "  ".join(word for word in (*words, result) if word)


if __name__ == "__main__":
    import tyro

    sys.exit(main(tyro.cli(Options, description=__doc__)))
