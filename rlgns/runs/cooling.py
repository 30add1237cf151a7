"""A stretch of a run with a smaller learning rate: a test of how the noise scale depends on the temperature ε/B.

The temperature of SGD is its learning rate over its batch size. McCandlish et al. 2018 (arXiv:1812.06162, appendix C)
lower it 16 times at some point of a run and then raise it again: the noise scale is to rise by as much, and fall back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import MaxLen

from rlgns.runs.bounds import PositiveFloat, Share


@dataclass(frozen=True, kw_only=True)
class CoolingOptions:
    """Options of a stretch with a smaller learning rate."""

    cooling: Annotated[tuple[Share, ...], MaxLen(2)] = ()
    """Two shares of the run (0.4 0.7) between which the learning rate is lower; none: throughout the same."""
    cooling_factor: PositiveFloat = 16.0
    """What the learning rate is divided by in that stretch [16: McCandlish et al. 2018]."""

    def rate_divisor(self, done: float) -> float:
        """What the learning rate is divided by.

        Args:
            done: Share of the run that has been made.

        Examples:
            >>> options = CoolingOptions(cooling=(0.25, 0.5))
            >>> [options.rate_divisor(done) for done in (0, 0.25, 0.5)]
            [1.0, 16.0, 1.0]
        """
        return self.cooling_factor if self.cooling and self.cooling[0] <= done < self.cooling[1] else 1.0

    def check_cooling(self) -> None:
        """Refuse shares that are no stretch.

        Raises:
            ValueError: With the remedy.
        """
        if self.cooling and not (len(self.cooling) == 2 and self.cooling[0] < self.cooling[1]):
            given = " ".join(f"{share:g}" for share in self.cooling)
            raise ValueError(
                f"cooling {given} is no stretch of a run; give two shares that rise, as in --cooling 0.4 0.7"
            )
