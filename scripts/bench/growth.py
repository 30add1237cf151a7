"""Transitions per second and memory as the batch grows, and how long a run takes to start.

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

from timing import take_turns

sys.path.insert(0, str(Path(__file__).parents[2]))

ROOT = Path(__file__).parents[2]

SCALARS = 8 + 6 * 4
"""Bytes of a transition beside its observation: the action, and six float32 numbers."""


@dataclass(frozen=True)
class Bench:
    """What to time."""

    algo: Literal["a2c", "ppo"] = "a2c"
    """Algorithm."""
    seconds: float = 6.0
    """Seconds that each shape is timed for, after an update."""
    rounds: int = 3
    """Rounds of all shapes."""
    shape: tuple[int, int] | None = None
    """Time this num_envs and num_steps alone; what the rounds are made of."""


SHAPES = [(num_envs, 5) for num_envs in (8, 32, 128, 512, 1024)] + [(16, num_steps) for num_steps in (5, 32, 128, 512)]


def main(bench: Bench) -> None:
    """Print both tables."""
    if bench.shape:
        print(json.dumps(_time(bench, *bench.shape)))
        return
    found: dict[tuple[int, int], list[dict[str, float]]] = {shape: [] for shape in SHAPES}
    for _ in range(bench.rounds):
        for num_envs, num_steps in SHAPES:
            command = [sys.executable, __file__, *sys.argv[1:], "--shape", str(num_envs), str(num_steps)]
            found[num_envs, num_steps].append(json.loads(subprocess.check_output(command, text=True).splitlines()[-1]))
    print(f"{'num_envs × num_steps':>22}{'transitions/s':>15}{'KB a transition':>17}{'peak memory, MB':>17}")
    for (num_envs, num_steps), figures in found.items():
        speed, kilobytes, peak = (statistics.median(f[key] for f in figures) for key in ("speed", "kilobytes", "peak"))
        print(f"{f'{num_envs} × {num_steps}':>22}{speed:15.0f}{kilobytes:17.2f}{peak:17.0f}")
    for name, values in take_turns(_starts(bench), max(5, bench.rounds)).items():
        print(f"{name:46}{statistics.median(values):6.2f} s [{min(values):.2f}, {max(values):.2f}]")


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
        def time_it() -> float:
            started = time.perf_counter()
            subprocess.run([sys.executable, *command], check=True, capture_output=True, cwd=ROOT)
            return time.perf_counter() - started

        return time_it

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
