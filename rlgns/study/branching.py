"""What is the largest batch that loses nothing? The critical batch size by branches from one checkpoint.

Merrill et al. 2025 (arXiv:2505.23971) train the same number of examples from one checkpoint at several batch sizes, and
call the largest one whose loss stays within a tolerance the critical batch size there. Seeds tell how far that is
known: a batch is kept for certain where the upper end of the interval of its loss, relative to that of the base batch
with the same seed, is within the tolerance, and lost for certain where the lower end is beyond it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rlgns.noise.intervals import t_quantile


@dataclass(frozen=True, slots=True)
class Branch:
    """The branches with one batch size.

    Attributes:
        batch_size: B, examples.
        mean: Mean result over seeds.
        loss: Mean of what is lost against the base batch with the same seed: the rise of a loss, or the fall of a
            return.
        low: Lower end of its interval; -inf with a single seed.
        high: Upper end; inf with a single seed.
        num_seeds: Seeds.
    """

    batch_size: int
    mean: float
    loss: float
    low: float
    high: float
    num_seeds: int


@dataclass(frozen=True, slots=True)
class Branching:
    """The largest batch that loses nothing, by branches.

    Attributes:
        branches: By batch size, rising.
        base: The batch that the others are held against.
        tolerance: What a batch may lose.
        largest: Largest batch up to which every one is within the tolerance.
        certain: Largest batch up to which every one is so for certain; the base where no larger one is.
        possible: Largest batch up to which none is beyond the tolerance for certain; inf where it is the largest tried.
    """

    branches: tuple[Branch, ...]
    base: int
    tolerance: float
    largest: int
    certain: int
    possible: float


def branching(
    results: Mapping[int, Mapping[int, float]], base: int, tolerance: float, *, rises: bool, level: float = 0.95
) -> Branching:
    """Find the largest batch that loses nothing.

    Args:
        results: By batch size and seed, the loss or return at the end of a branch.
        base: The batch that the others are held against.
        tolerance: What a batch may lose, in the unit of the results.
        rises: Whether a larger result is better, as a return is.
        level: Nominal coverage of the intervals.

    Returns:
        The branches and the batch.

    Raises:
        ValueError: The base was not tried, or shares no seed with another batch.

    Examples:
        >>> results = {32: {0: 1.0, 1: 1.1}, 64: {0: 1.0, 1: 1.1}, 128: {0: 1.5, 1: 1.6}}
        >>> found = branching(results, 32, 0.1, rises=False)
        >>> found.largest, found.certain, found.possible
        (64, 64, 64)
    """
    if not results.get(base):
        raise ValueError(f"no branch with the base batch {base} has ended; run it first")
    branches = [_branch(size, results[size], results[base], rises, level) for size in sorted(results)]
    larger = [branch for branch in branches if branch and branch.batch_size >= base]
    return Branching(
        branches=tuple(branch for branch in branches if branch),
        base=base,
        tolerance=tolerance,
        largest=_last(larger, [branch.loss <= tolerance for branch in larger]),
        certain=_last(larger, [branch.batch_size == base or branch.high <= tolerance for branch in larger]),
        possible=_end(larger, [branch.low <= tolerance for branch in larger]),
    )


def _branch(
    size: int, results: Mapping[int, float], base: Mapping[int, float], rises: bool, level: float
) -> Branch | None:
    seeds = sorted(results.keys() & base.keys())
    if not seeds:
        return None
    values = np.array([results[seed] for seed in seeds])
    losses = (values - np.array([base[seed] for seed in seeds])) * (-1 if rises else 1)
    n, mean = len(seeds), float(losses.mean())
    reach = t_quantile(n - 1, level) * float(losses.std(ddof=1)) / math.sqrt(n) if n > 1 else math.inf
    return Branch(size, float(values.mean()), mean, mean - reach, mean + reach, n)


def _last(branches: Sequence[Branch], kept: Sequence[bool]) -> int:
    """The last batch before the first one that is not kept."""
    number = kept.index(False) if False in kept else len(kept)
    return branches[max(number - 1, 0)].batch_size


def _end(branches: Sequence[Branch], kept: Sequence[bool]) -> float:
    return _last(branches, kept) if False in kept else math.inf
