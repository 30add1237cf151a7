"""Environments that are copies of one another: they repeat the same noise, so that the noise scale is understated.

Two signs are looked for, neither of which independent environments show:

* Same observations. Environments that no measured rollout has told apart form a class. Independent ones, too, are alike
  for a while where actions do not matter yet, or where a policy that hardly varies meets a game without chance. They
  part at some rate: D partings in E steps, summed over the environments of all classes, so that a class lasts for
  another x of such steps with probability (1 + x/E)^−D. A class counts as copies once that is below `CHANCE`.
* Same starts. Environments of equal seed start every episode alike, though their actions differ. Where an environment's
  own m starts coincide with probability c, the starts of two others coincide throughout with probability cᵐ. Starts
  that never vary say nothing.

Once all environments are told apart, their observations are not looked at any more.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

MIN_ROLLOUTS = 5
"""Measured rollouts in which copies have to be alike."""

MIN_STEPS = 100
"""Steps for which copies have to be alike: openings may be alike for long."""

MIN_LONE_STEPS = 1000
"""Steps after which all environments are reported, where nothing has told any two of them apart."""

MIN_OBSERVATIONS = 10
"""Different observations that copies have to share; a constant observation says nothing."""

CHANCE = 1e-3
"""Largest probability with which any of the independent environments may stay alike for so long."""

CHANCE_OF_STARTS = 1e-6
"""Largest probability with which the starts of any two independent environments may coincide."""

NUMBERS_OF_STARTS = (10, 20, 40, 80, 160, 320)
"""Numbers of episodes after which starts are compared."""

Group = tuple[int, ...]
"""Numbers of environments, ascending, counted over all ranks."""


@dataclass(slots=True)
class _Class:
    """Environments that no measured rollout has told apart.

    Attributes:
        members: Their numbers.
        formed: The step at which the last one that differed was told apart from them.
        num_rollouts: Measured rollouts that have ended since then.
        observations: Digests of different observations since then, as many as are needed.
    """

    members: Group
    formed: int
    num_rollouts: int = 0
    observations: set[bytes] = field(default_factory=set)


class SameObservations:
    """Environments that have returned the same observations in all measured rollouts.

    Attributes:
        num_envs: Environments of all ranks.
    """

    def __init__(self, num_envs: int) -> None:
        """Begin with one class of all environments."""
        self.num_envs = num_envs
        self._classes = [_Class(tuple(range(num_envs)), 0)]
        self._steps = self._partings = self._exposure = 0

    def unresolved(self) -> list[int]:
        """Environments that have not been told apart from all others."""
        return [n for each in self._classes for n in each.members]

    def observe(self, digests: Mapping[int, Sequence[bytes]], step: int) -> None:
        """Split the classes by observations at consecutive steps.

        Args:
            digests: Those of every unresolved environment.
            step: The step of the first of them, counted from 1. Environments that have parted since the step observed
                last are taken to have done so in this one.
        """
        for i in range(len(next(iter(digests.values()), ()))):
            self._exposure += (step + i - self._steps) * len(self.unresolved())
            self._steps = step + i
            self._classes = [part for each in self._classes for part in self._split(each, digests, i)]

    def _split(self, each: _Class, digests: Mapping[int, Sequence[bytes]], i: int) -> list[_Class]:
        by_digest: defaultdict[bytes, list[int]] = defaultdict(list)
        for n in each.members:
            by_digest[digests[n][i]].append(n)
        if len(by_digest) == 1:
            if len(each.observations) < MIN_OBSERVATIONS:
                each.observations.update(by_digest)
            return [each]
        self._partings += len(by_digest) - 1
        return [_Class(tuple(alike), self._steps) for alike in by_digest.values() if len(alike) > 1]

    def end_rollout(self) -> None:
        """Count a measured rollout in which the classes were alike."""
        for each in self._classes:
            each.num_rollouts += 1

    def groups(self, same_starts: Iterable[Group] = ()) -> dict[Group, int]:
        """The copies, with the number of measured rollouts in which they were alike.

        Args:
            same_starts: Groups that have started alike, which confirms a class that holds two of them.
        """
        seen = [c for c in self._classes if c.num_rollouts >= MIN_ROLLOUTS and len(c.observations) >= MIN_OBSERVATIONS]
        confirmed = [set(group) for group in same_starts]
        if any(self._lasts(c) or any(len(group & set(c.members)) > 1 for group in confirmed) for c in seen):
            return {c.members: c.num_rollouts for c in seen}  # where there is one pair of copies, the others are, too
        return {}

    def _lasts(self, each: _Class) -> bool:
        """Whether independent environments would have parted by now."""
        steps = self._steps - each.formed
        if not self._partings:
            return steps >= MIN_LONE_STEPS
        x = steps * len(each.members)
        chance = (1 + x / (self._exposure - x)) ** -float(self._partings)
        return steps >= MIN_STEPS and chance * len(self._classes) < CHANCE


class SameStarts:
    """Environments whose episodes start with the same observations in the same order."""

    def __init__(self) -> None:
        """Begin without episodes."""
        self._starts: defaultdict[int, list[bytes]] = defaultdict(list)
        self._signs: dict[int, dict[int, tuple[bytes, float]]] = defaultdict(dict)

    def add(self, env: int, start: bytes) -> None:
        """Add the digest of the observation with which an environment starts its next episode."""
        starts = self._starts[env]
        if len(starts) < NUMBERS_OF_STARTS[-1]:
            starts.append(start)
            if len(starts) in NUMBERS_OF_STARTS:
                self._signs[env][len(starts)] = digest(*starts), _coincidence(starts)

    @property
    def signs(self) -> dict[int, dict[int, tuple[bytes, float]]]:
        """For every environment: digest of its first m starts and their probability of coincidence, by m."""
        return dict(self._signs)

    def is_over(self, env: int) -> bool:
        """Whether enough starts of an environment are known."""
        return len(self._starts[env]) >= NUMBERS_OF_STARTS[-1]


def groups_of_same_starts(signs: Mapping[int, Mapping[int, tuple[bytes, float]]], num_envs: int) -> dict[Group, int]:
    """Find environments that start alike more often than chance allows.

    Args:
        signs: From `SameStarts.signs`, of all ranks.
        num_envs: Environments of all ranks.

    Returns:
        The groups, with the number of episodes that were compared; every environment is in one group at most. Those of
        m episodes are complete, and returned, once all environments have ended m, or one of them 2m.
    """
    groups: dict[Group, int] = {}
    for m in reversed(NUMBERS_OF_STARTS):
        if sum(m in by_number for by_number in signs.values()) < num_envs and not any(
            2 * m in by_number for by_number in signs.values()
        ):
            continue
        alike: defaultdict[bytes, list[int]] = defaultdict(list)
        grouped = {n for group in groups for n in group}
        for n, by_number in sorted(signs.items()):
            if m in by_number and n not in grouped and by_number[m][1] * num_envs**2 < CHANCE_OF_STARTS:
                alike[by_number[m][0]].append(n)
        groups |= {tuple(members): m for members in alike.values() if len(members) > 1}
    return groups


def _coincidence(starts: Sequence[bytes]) -> float:
    """Probability that another environment has the same m starts, cᵐ; c is not known below 1/m."""
    m = len(starts)
    equal_pairs = sum(count * (count - 1) for count in Counter(starts).values())
    return float(max(equal_pairs / (m * (m - 1)), 1 / m) ** m)


def copies_in_words(observations: Mapping[Group, int], starts: Mapping[Group, int], num_envs: int) -> str:
    """What was found, as a sentence that names the environments and the remedy; empty if nothing was.

    Args:
        observations: Groups of the same observations, with their number of measured rollouts.
        starts: Groups of the same starts, with their number of episodes.
        num_envs: Environments of all ranks.

    Examples:
        >>> copies_in_words({(3, 7): 5}, {}, 8)
        'environments 3 and 7 have returned the same observations in 5 measured rollouts: they are copies, so that \
the noise scale is understated; give each environment its own seed'
    """
    remedy = "so that the noise scale is understated; give each environment its own seed"
    if tuple(range(num_envs)) in observations and not starts:
        number = observations[tuple(range(num_envs))]
        return (
            f"all {num_envs} environments have returned the same observations in {number} measured rollouts: unless "
            f"nothing in them is left to chance, they are copies, {remedy}"
        )
    if observations:
        number = min(observations.values())
        return (
            f"environments {_named(observations)} have returned the same observations in {number} measured rollouts: "
            f"they are copies, {remedy}"
        )
    if starts:
        number = min(starts.values())
        return (
            f"environments {_named(starts)} have started {number} episodes in a row with the same observations, which "
            f"vary from episode to episode: they draw the same random numbers, {remedy}"
        )
    return ""


def _named(groups: Iterable[Group]) -> str:
    """Groups of environments in words: "3 and 7; 4, 5 and 6"."""
    named = [_listed([str(n) for n in group]) for group in sorted(groups)]
    return "; ".join([*named[:4], *([f"and {len(named) - 4} more groups"] if len(named) > 4 else [])])


def _listed(words: Sequence[str]) -> str:
    shown = [*words[:6], "…", words[-1]] if len(words) > 8 else list(words)
    return f"{', '.join(shown[:-1])} and {shown[-1]}"


def digest(*parts: bytes) -> bytes:
    """A digest of 16 bytes."""
    result = hashlib.blake2b(digest_size=16)
    for part in parts:
        result.update(part)
    return result.digest()
