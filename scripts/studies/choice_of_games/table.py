"""Print what each game of this study scored after its first 50 games and at the end of its run, as Markdown.

python scripts/studies/choice_of_games/table.py
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import tyro

from rlgns.runs.directory import METRICS
from rlgns.runs.goal_times import EPISODES
from rlgns.runs.goals import COSTS, RETURN
from rlgns.runs.packed import run_folders
from rlgns.runs.records import Record, read_records
from rlgns.study.atari_scores import SCORES

HERE = Path(__file__).parent
FIRST = 50
"""Games after which the first return is read; before, the short games are too many among those that have ended."""


@dataclass(frozen=True)
class Options:
    """Options of the script."""

    runs: Path = HERE / "runs.zip"
    """Directory of the runs, or packed file."""


def main(options: Options) -> None:
    """Print the rows."""
    print("\n".join(rows(options.runs)))


def rows(runs: Path) -> Iterator[str]:
    """A line of the table for every run, in the order of the games' names."""
    for run in run_folders(runs, print):
        records = [record for record in read_records(run / METRICS) if record.get(RETURN) is not None]
        first = next(record for record in records if record[EPISODES] >= FIRST)
        random, human = SCORES[run.name]
        cells = (run.name, f"{random:,.1f}", f"{human:,.1f}", *_cells(first), *_cells(records[-1]))
        yield f"| {' | '.join(cells)} |".replace(",", " ").replace("-", "−")


def _cells(record: Record) -> tuple[str, str, str]:
    """Transitions, games that have ended, and the mean return of the last 100 of them."""
    return f"{record[COSTS['examples']]:,}", f"{record[EPISODES]:,}", f"{record[RETURN]:,.1f}"


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
