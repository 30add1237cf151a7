"""Options of recurrent PPO that plays two-player Pong against itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Interval

from rlgns.runs.bounds import Goals, NumThreads, PositiveFloat, PositiveInt, Seed
from rlgns.runs.shared_options import OutputOptions


@dataclass(frozen=True, kw_only=True)
class SelfPlayConfig(OutputOptions):
    """Options of `rlgns train self_play`."""

    num_envs: Annotated[int, Interval(ge=4, le=10**6)] = 256
    """Games that are played at the same time."""
    num_steps: Annotated[int, Interval(ge=1, le=10**4)] = 16
    """Steps of every game in a rollout."""
    total_transitions: PositiveInt = 2_000_000
    """Transitions after which the run ends at the latest."""
    goals: Goals = ()
    """Mean returns against the player by rule to reach, from −1 to 1; the run ends at the last."""
    eval_every: PositiveInt = 50_000
    """Transitions from one evaluation against the player by rule to the next."""
    eval_episodes: PositiveInt = 1_000
    """Games of an evaluation."""
    past_every: PositiveInt = 100_000
    """Transitions after which the present self joins the past ones; a fifth of the games are against those."""
    learning_rate: PositiveFloat = 3e-3
    """Adam's learning rate; with lr_batch_scale its limit for large batches."""
    lr_batch_scale: Annotated[float, Interval(ge=0)] = 0.0
    """B* in learning_rate/(1 + B*/B)^α; 0: the same rate at every batch size."""
    lr_batch_exponent: Annotated[float, Interval(ge=0, le=1)] = 0.5
    """α of that rule [½ for Adam: McCandlish et al. 2018]."""
    num_epochs: PositiveInt = 2
    """Passes over a rollout."""
    num_minibatches: PositiveInt = 4
    """Minibatches of a pass."""
    gamma: Annotated[float, Interval(gt=0, le=1)] = 0.99
    """Discount γ."""
    ent_coef: Annotated[float, Interval(ge=0)] = 0.003
    """Weight of the entropy bonus in the loss."""
    hidden_size: PositiveInt = 64
    """Units of the LSTMs of policy and value function, and of the layer after each."""
    measure: bool = True
    """Measure the gradient noise scale; training is bitwise the same."""
    measure_every: PositiveInt | None = None
    """Updates from one measurement to the next [20 in the first 40, then for 2 % of the time]."""
    seed: Seed = 0
    """Random seed of parameters, serves, opponents and actions."""
    num_torch_threads: NumThreads | None = None
    """CPU threads of the networks [one a core]."""

    @property
    def batch_size(self) -> int:
        """Transitions of an update."""
        return self.num_envs * self.num_steps

    @property
    def effective_learning_rate(self) -> float:
        """The learning rate at this batch size."""
        rate: float = self.learning_rate * (1 + self.lr_batch_scale / self.batch_size) ** -self.lr_batch_exponent
        return rate
