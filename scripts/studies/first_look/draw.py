"""Draw the figures of this study anew from its records, and print its table.

python scripts/studies/first_look/draw.py
"""

import json
import math
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[3]))

from rlgns.agents.measuring import LOSSES
from rlgns.noise.history import BY_TRANSITION, History
from rlgns.report.run_figures import noise_scale_figure
from rlgns.runs.goals import RETURN
from rlgns.runs.records import columns, read_records
from rlgns.runs.summary import summary_lines

HERE = Path(__file__).parent


def main() -> None:
    """One figure and one table a run."""
    for run in sorted(path.parent for path in HERE.glob("*/metrics.jsonl.gz")):
        records = [
            {**record, "progress/examples": record["progress/transitions"]}
            for record in read_records(run / "metrics.jsonl.gz")
        ]
        options = json.loads((run / "config.json").read_text())["options"]
        shape = options["num_envs"], options["num_steps"]
        title = f"{options['algo'].upper()} on {options['game']}, {shape[0]} × {shape[1]}, seed {options['seed']}"
        paths = [run / "noise_scale.png"]
        noise_scale_figure(records, LOSSES, title=title, measure=RETURN, batch_size=math.prod(shape), paths=paths)
        print(title)
        print("\n".join(summary_lines(History.from_records(records), LOSSES, shape=shape, unit=options["unit"])))
        _print_units(History.from_records(records))
        _print_learning(*columns(records, "progress/transitions", "rollout/episode_return", "time/seconds"))


def _print_units(history: History) -> None:
    """Noise scales of the rollouts that were split both ways, and how much of |G|² the largest rollout holds."""
    for loss in LOSSES:
        by_transition = f"{loss}/{BY_TRANSITION}"
        both = History([m for m in history.measurements if by_transition in m])
        split = f"{both.noise_scale(loss)} by environment, {both.noise_scale(by_transition)} by transition"
        sq_norms = [moments.sq_norm for moments in history.moments(loss)]
        share = f"{max(sq_norms) / sum(sq_norms):.0%}" if sum(sq_norms) > 0 else "more than all"
        largest = f"largest of {len(sq_norms)} |G|²: {share} of their sum"
        print(f"  {loss:8}{len(both.measurements)} rollouts split both ways: {split}; {largest}")


def _print_learning(
    transitions: NDArray[np.float64], returns: NDArray[np.float64], seconds: NDArray[np.float64]
) -> None:
    print("  transitions   mean return of the last 100 games   minutes")
    for share in (0.1, 0.25, 0.5, 0.75, 1.0):
        i = min(int((transitions <= share * transitions[-1]).sum()), len(transitions)) - 1
        print(f"  {transitions[i]:11,.0f}   {returns[i]:33.2f}   {seconds[i] / 60:7.1f}")


if __name__ == "__main__":
    main()
