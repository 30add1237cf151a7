"""Totals of a run that its checkpoints hold: seconds, episodes, and the last finished episodes."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class Counters:
    """Totals of a run over all its resumptions.

    Attributes:
        seconds: Wall-clock seconds.
        episodes: Finished episodes of all ranks.
        finished: Return "r", length "l" and time "t" of the last finished episodes of all ranks.
    """

    seconds: float = 0.0
    episodes: int = 0
    finished: list[dict[str, float]] = field(default_factory=list)

    def take(self, episodes: list[dict[str, float]], window: int) -> None:
        """Count finished episodes, and keep the last `window` of all."""
        self.episodes += len(episodes)
        self.finished = (self.finished + episodes)[-window:]
