"""Checkpoints that are kept beside the latest one, at logarithmically spaced points of a run.

They are files RUN/checkpoints/EXAMPLES.pt, named after the examples consumed (transitions in reinforcement learning).
Which of them are due follows from the files that are there, so that a resumed run goes on where it was.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from rlgns.runs.directory import BEST, CHECKPOINT
from rlgns.runs.probes import LAST

FOLDER = "checkpoints"


def points(total: int, number: int) -> list[int]:
    """Return when checkpoints are kept: after total, total/2, total/4, … examples.

    Args:
        total: Examples of the whole run.
        number: Number of checkpoints.

    Returns:
        Numbers of examples, rising; fewer where the run is too short for them.

    Examples:
        >>> points(100_000, 4)
        [12500, 25000, 50000, 100000]
    """
    return sorted({total >> halvings for halvings in range(number)} - {0})


class KeptCheckpoints:
    """The kept checkpoints of a run that is in progress.

    Attributes:
        folder: The folder of the files.
    """

    def __init__(self, run: Path, total: int, number: int) -> None:
        """Find out which checkpoints are there.

        Args:
            run: The run's directory.
            total: Examples of the whole run.
            number: Number of checkpoints to keep; 0 for none.
        """
        self.folder = run / FOLDER
        self._points = points(total, number)
        self._kept = sorted(kept_checkpoints(run))

    def path_if_due(self, examples: int) -> Path | None:
        """Return where to write a checkpoint now, if one is due.

        Args:
            examples: Examples consumed so far.
        """
        passed = [point for point in self._points if point <= examples]
        if not passed or any(passed[-1] <= kept <= examples for kept in self._kept):
            return None
        self._kept.append(examples)
        return self.folder / f"{examples}.pt"


def kept_checkpoints(run: Path) -> Mapping[int, Path]:
    """Return the kept checkpoints of a run by the number of examples, rising.

    Args:
        run: The run's directory.
    """
    files = (run / FOLDER).glob("*.pt") if (run / FOLDER).is_dir() else ()
    return {int(path.stem): path for path in sorted(files, key=lambda p: (len(p.stem), p.stem)) if path.stem.isdigit()}


def chosen_checkpoints(run: Path, choice: str) -> Mapping[str, Path]:
    """Return the checkpoints that a choice names, by their names.

    Args:
        run: The run's directory.
        choice: "last", the latest; "best", the one that was evaluated best; "all", every kept one and the latest; or a
            number of examples, the nearest kept one.

    Raises:
        ValueError: There is no such checkpoint.
    """
    latest = {LAST: run / CHECKPOINT} if (run / CHECKPOINT).exists() else {}
    kept = kept_checkpoints(run)
    if choice == LAST:
        if not latest:
            raise ValueError(f"{run} has no {CHECKPOINT}: it stopped before its first one or is no run; name another")
        return latest
    if choice == "best":
        if not (run / BEST).exists():
            raise ValueError(f"{run} has no {BEST}: it was not evaluated; train with eval_every=50000, or choose last")
        return {choice: run / BEST}
    if choice == "all":
        return {str(examples): path for examples, path in kept.items()} | latest
    if not choice.isdigit():
        raise ValueError(f"checkpoint '{choice}' is neither last nor all nor a number of examples nor best")
    if not kept:
        raise ValueError(f"{run} has kept no checkpoint but the last; train with keep_checkpoints=8, or choose last")
    nearest = min(kept, key=lambda examples: abs(examples - int(choice)))
    return {str(nearest): kept[nearest]}
