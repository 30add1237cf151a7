"""Settings of trial updates, and what the updates gain by them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from rlgns.noise.variances import Float64

LOSSES = ("policy", "value", "total")


@dataclass(frozen=True, slots=True)
class Setting:
    """How the updates of a sequence are made.

    Attributes:
        num_envs: N, environments of a rollout.
        num_epochs: Passes over a rollout; 1 for A2C.
        num_minibatches: Minibatches of a pass; 1 for A2C.
        carries_state: Whether the optimiser starts with the checkpoint's state (momentum and second moments).
    """

    num_envs: int
    num_epochs: int = 1
    num_minibatches: int = 1
    carries_state: bool = True


@dataclass(frozen=True, slots=True)
class SettingTrial:
    """The sequences of one setting.

    Attributes:
        setting: The setting.
        gains: By loss, [rounds, updates]: decrease of the held-out loss since the checkpoint.
        is_base: Whether this is the run's own setting.
    """

    setting: Setting
    gains: Mapping[str, Float64]
    is_base: bool

    def gain(self, loss: str) -> tuple[float, float]:
        """Mean gain of the whole sequence, and its standard error over rounds.

        Args:
            loss: "policy", "value" or "total".
        """
        return _mean(self.gains[loss][:, -1])

    def against(self, base: SettingTrial, loss: str) -> tuple[float, float]:
        """Mean difference from the gain of another setting in the same rounds, and its standard error.

        Args:
            base: The other setting.
            loss: "policy", "value" or "total".
        """
        return _mean(self.gains[loss][:, -1] - base.gains[loss][:, -1])


def _mean(values: Float64) -> tuple[float, float]:
    return float(values.mean()), float(values.std(ddof=1) / math.sqrt(len(values)))


@dataclass(frozen=True, slots=True)
class UpdateTrials:
    """Result of sequences of real updates.

    Attributes:
        rows: By setting, the run's own first.
        num_updates: Updates of a sequence.
        num_steps: T.
        num_held_out: Held-out transitions.
        seconds: Time taken.
    """

    rows: tuple[SettingTrial, ...]
    num_updates: int
    num_steps: int
    num_held_out: int
    seconds: float

    @property
    def base(self) -> SettingTrial:
        """The run's own setting."""
        return self.rows[0]

    @property
    def num_rounds(self) -> int:
        """Sequences of each setting."""
        return len(self.base.gains["total"])

    def along(self, axis: str) -> list[SettingTrial]:
        """The settings that differ from the run's own in one number alone, and the run's own, in rising order.

        Args:
            axis: Name of the number: "num_envs", "num_epochs" or "num_minibatches".
        """
        base = self.base.setting
        rows = [row for row in self.rows if replace(row.setting, **{axis: getattr(base, axis)}) == base]
        return sorted(rows, key=lambda row: getattr(row.setting, axis))


def settings_around(base: Setting, most_envs: int, num_steps: int) -> list[Setting]:
    """The settings that are tried: the run's own, and those that differ from it in one thing.

    Args:
        base: The run's own.
        most_envs: Environments that are there for updates.
        num_steps: T, which with the environments bounds the number of minibatches.

    Returns:
        Settings, the run's own first. A fresh optimiser is tried at every number of environments.

    Examples:
        >>> [setting.num_envs for setting in settings_around(Setting(4), 8, 5)]
        [4, 1, 2, 8, 1, 2, 4, 8]
    """
    envs = [n for n in _around(base.num_envs, 4) if n <= most_envs]
    settings = [base, *(replace(base, num_envs=n) for n in envs)]
    if base.num_epochs * base.num_minibatches > 1:
        most = base.num_envs * num_steps // 2
        settings += [replace(base, num_epochs=epochs) for epochs in _around(base.num_epochs, 4, above=2)]
        settings += [replace(base, num_minibatches=m) for m in _around(base.num_minibatches, 4) if m <= most]
    settings += [
        replace(base, num_envs=n, carries_state=False) for n in sorted({*envs, base.num_envs} & {*range(most_envs + 1)})
    ]
    return list(dict.fromkeys(settings))


def _around(number: int, factor: int, above: int | None = None) -> list[int]:
    """Powers of two times a number, up to a factor below and above it, without itself."""
    below = [number // 2**k for k in range(1, factor.bit_length()) if number % 2**k == 0]
    return sorted(below) + [number * 2**k for k in range(1, (above or factor).bit_length())]
