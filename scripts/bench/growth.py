"""How do speed and memory change as the batch grows, and how long does a run take to start?

python scripts/bench/growth.py --algo a2c
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from timing import print_rows, take_turns

sys.path.insert(0, str(Path(__file__).parents[2]))

ROOT = Path(__file__).parents[2]

SCALARS = 8 + 6 * 4
"""Bytes of a transition without its observation: an int64 action and six float32 numbers."""


@dataclass(frozen=True)
class Bench:
    """Options of the benchmark."""

    algo: Literal["a2c", "ppo"] = "a2c"
    """Algorithm to train."""
    seconds: float = 6.0
    """Seconds that each shape is timed for, after one update to warm up."""
    rounds: int = 3
    """Number of rounds; each times every shape once."""
    shape: tuple[int, int] | None = None
    """Time only this num_envs and num_steps and print the result as JSON; the rounds start the script in this way."""


SHAPES = [(num_envs, 5) for num_envs in (8, 32, 128, 512, 1024)] + [(16, num_steps) for num_steps in (5, 32, 128, 512)]


def main(bench: Bench) -> None:
    """Print a table of the shapes and the times to start."""
    if bench.shape:
        print(json.dumps(_time(bench, *bench.shape)))
        return
    results: dict[tuple[int, int], list[dict[str, float]]] = {shape: [] for shape in SHAPES}
    for _ in range(bench.rounds):
        for num_envs, num_steps in SHAPES:
            command = [sys.executable, __file__, *sys.argv[1:], "--shape", str(num_envs), str(num_steps)]
            results[num_envs, num_steps].append(
                json.loads(subprocess.check_output(command, text=True).splitlines()[-1])
            )
    rows = []
    for (num_envs, num_steps), figures in results.items():
        speed, kilobytes, peak = (statistics.median(f[key] for f in figures) for key in ("speed", "kilobytes", "peak"))
        rows.append((f"{num_envs} × {num_steps}", f"{speed:.0f}", f"{kilobytes:.2f}", f"{peak:.0f}"))
    print_rows(("num_envs × num_steps", "transitions/s", "KB per transition", "peak memory, MB"), rows)
    for name, values in take_turns(_starts(bench), max(5, bench.rounds)).items():
        print(f"{name}: {statistics.median(values):.2f} s [{min(values):.2f}, {max(values):.2f}]")


def _time(bench: Bench, num_envs: int, num_steps: int) -> dict[str, float]:
    from peers import UpdateClock

    from rlgns.agents.config import TrainConfig, resolved
    from rlgns.agents.task import run

    options: dict[str, Any] = {"algo": bench.algo, "num_envs": num_envs, "num_steps": num_steps, "wandb": "disabled"}
    config = resolved(TrainConfig(**options, total_transitions=10**9))
    clock = UpdateClock(bench.seconds)
    with tempfile.TemporaryDirectory() as folder:
        run(replace(config, out=Path(folder) / "run"), [clock])
    observations: Any = clock.model.rollout_buffer.observations  # type: ignore[attr-defined]
    return {
        "speed": clock.speed(),
        "kilobytes": observations.num_bytes / config.batch_size / 1e3 + SCALARS / 1e3,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
    }


def _starts(bench: Bench) -> dict[str, Any]:
    script = str(ROOT / "scripts" / "train_atari.py")

    def process(*command: str) -> Any:
        def seconds_to_end() -> float:
            started = time.perf_counter()
            subprocess.run([sys.executable, *command], check=True, capture_output=True, cwd=ROOT)
            return time.perf_counter() - started

        return seconds_to_end

    def first_update() -> float:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "run"
            flags = ["--algo", bench.algo, "--total-transitions", "1", "--wandb", "disabled", "--out", str(out)]
            started = time.perf_counter()
            with subprocess.Popen(
                [sys.executable, script, *flags], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            ) as run:
                while run.poll() is None and not _has_content(out / "metrics.jsonl"):
                    time.sleep(0.01)
                return time.perf_counter() - started

    return {
        "import rlgns": process("-c", "import rlgns"),
        "train_atari.py --help": process(script, "--help"),
        "train_atari.py to the first update's record": first_update,
    }


def _has_content(path: Path) -> bool:
    return path.exists() and path.stat().st_size > 0


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Bench, description=__doc__))
