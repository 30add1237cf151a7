"""Options of a training run, each with its unit, its bounds, its default and where the default comes from.

`TrainConfig` holds the options of a user, None where the algorithm's published default is meant; `resolved` turns it
into a `ResolvedConfig`, with which a run trains. Torch is not imported, so that `--help` and bad input are answered at
once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Interval, MaxLen

from rlgns.agents.config_checks import check_minibatches, check_rollout_fits, check_seed, minibatches_of
from rlgns.agents.evaluation_options import EvaluationOptions
from rlgns.noise.grouping import Unit
from rlgns.runs.bounds import (
    CountOrZero,
    FloatOrZero,
    Goals,
    Name,
    NumEnvs,
    NumSteps,
    OnlyWith,
    PositiveFloat,
    PositiveInt,
    Seed,
    Share,
    ShareBelowOne,
)
from rlgns.runs.cooling import CoolingOptions
from rlgns.runs.shared_options import RunOptions
from rlgns.runs.values import check_effect, check_options

DEFAULT_GAME = "breakout"

ENVPOOL = "envpool:"
"""Before an environment's id: `--env envpool:CartPole-v1` is `--env CartPole-v1 --vectorization envpool`."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig(RunOptions, CoolingOptions, EvaluationOptions):
    """Train A2C or PPO on many environments and measure the gradient noise scale while training."""

    GROUPS: ClassVar[Mapping[str, str | tuple[str, ...]]] = {
        "Task": "game", "Rollout": "num_envs", "Optimisation": "learning_rate", "Temperature": "cooling",
        "Evaluation": "eval_every", "Atari": "frameskip", "Measuring": "measure", "Run": ("out", "resume", "log_every"),
        "Weights & Biases": ("wandb", "wandb_entity"), "Machine": ("device", "num_threads"),
    }  # fmt: skip
    """Headings of `--help`, and the first options below each."""

    # What to train on
    game: Name | None = None
    """Atari game by ale-py's name, in any spelling (ms_pacman, MsPacman, ALE/MsPacman-v5) [breakout]."""
    env: Annotated[str, MaxLen(256)] | None = None
    """Any other Gymnasium environment by id (CartPole-v1; module:Id-v0 imports the module first), instead of a game."""
    vectorization: Literal["sync", "async", "vector_entry_point", "envpool"] = "sync"
    """How environments of --env run: in one process, in a process each, as the id's own vector environment, EnvPool."""
    algo: Literal["a2c", "ppo"] = "a2c"
    """Algorithm: a2c (Mnih et al. 2016, arXiv:1602.01783), ppo (Schulman et al. 2017, arXiv:1707.06347)."""
    preset: Name | None = None
    """Options of another project: zoo-ppo, zoo-a2c (tuned), cleanrl-ppo, sb3-ppo, sb3-a2c; what is given wins."""
    total_transitions: PositiveInt = 300_000
    """Transitions to train for (decisions of one environment; 4 frames each on Atari); published runs: 10 million."""
    goals: Goals = ()
    """Mean returns to reach, of evaluations if there are any; the run ends when all are reached; costs are recorded."""
    episode_window: Annotated[int, Interval(ge=1, le=10**6)] = 100
    """Episodes in the mean return; no goal counts as reached before so many have finished."""
    seed: Seed = 0
    """Seed of networks, actions and environments; environment i gets seed + i."""

    # The batch: num_envs × num_steps transitions behind one update
    num_envs: NumEnvs | None = None
    """Environments in parallel [A2C 16, PPO 8: Mnih 2016, Schulman 2017]."""
    num_steps: NumSteps | None = None
    """Transitions of each environment in one rollout [A2C 5, PPO 128: the same]."""

    adaptive_rollouts: Annotated[int, Interval(ge=1, le=1024)] = 1
    """Most rollouts behind an update; their number doubles and halves as the noise scale asks for [1: never]."""

    # The algorithm
    learning_rate: PositiveFloat | None = None
    """Step size [A2C 7e-4, PPO 2.5e-4: Mnih 2016, Schulman 2017]."""
    lr_batch_scale: FloatOrZero = 0.0
    """B* of the rate learning_rate/(1 + B*/B)^α, in transitions; 0: the same at every batch size [McCandlish 2018]."""
    lr_batch_exponent: Annotated[float, Interval(ge=0, le=10)] = 0.5
    """α of that rate [½ for RMSProp and Adam: McCandlish 2018, who give ½ to 1]."""
    anneal_learning_rate: bool | None = None
    """Lower the learning rate linearly to 0 over the run [A2C no, as Stable-Baselines3; PPO yes: Schulman 2017]."""
    gamma: Share = 0.99
    """Discount factor per transition [Mnih 2015]."""
    gae_lambda: Share | None = None
    """λ of generalised advantage estimation [A2C 1, PPO 0.95: Schulman 2016, arXiv:1506.02438]."""
    ent_coef: FloatOrZero = 0.01
    """Weight of the entropy bonus in the loss [Mnih 2016, Schulman 2017]."""
    vf_coef: FloatOrZero | None = None
    """Weight of the value loss [A2C 0.25: OpenAI Baselines; PPO 0.5: Huang et al. 2022, "37 details"]."""
    max_grad_norm: PositiveFloat = 0.5
    """Largest norm of the gradient; longer gradients are clipped, after measuring [OpenAI Baselines]."""
    rmsprop_alpha: Annotated[Share, OnlyWith("algo", "a2c")] = 0.99
    """A2C: decay of RMSProp's mean square [Mnih 2016]."""
    optimizer_eps: PositiveFloat = 1e-5
    """ε of RMSProp (A2C) or Adam (PPO) [OpenAI Baselines; Huang 2022]."""
    num_epochs: Annotated[int, Interval(ge=1, le=10_000), OnlyWith("algo", "ppo")] = 4
    """PPO: passes over a rollout [Schulman 2017, 3 there; 4 in OpenAI Baselines]."""
    num_minibatches: Annotated[PositiveInt, OnlyWith("algo", "ppo")] = 4
    """PPO: minibatches a pass is split into [OpenAI Baselines]."""
    minibatch_size: Annotated[PositiveInt, OnlyWith("algo", "ppo")] | None = None
    """PPO: transitions of a minibatch; it decides num_minibatches [never; Beukman 2026 advise a fixed size]."""
    clip_coef: Annotated[PositiveFloat, OnlyWith("algo", "ppo")] = 0.1
    """PPO: ε of the clipped surrogate [Schulman 2017]."""
    anneal_clip_coef: Annotated[bool, OnlyWith("algo", "ppo")] = True
    """PPO: lower ε linearly to 0 over the run [Schulman 2017]."""
    ewma_decay: Annotated[ShareBelowOne, OnlyWith("algo", "ppo")] = 0.0
    """PPO: keep updates close to a mean of past policies with this weight per step [Hilton 2021: 0.889; 0: no mean]."""
    ewma_minibatch: Annotated[PositiveInt, OnlyWith("algo", "ppo")] | None = None
    """PPO: minibatch at which ewma_decay and learning_rate hold; at others both are scaled [never: Hilton 2021]."""
    normalize_advantage: bool | None = None
    """Give advantages mean 0 and variance 1 [A2C no, PPO yes, by minibatch: OpenAI Baselines]."""

    # Atari: ale-py's own names
    frameskip: Annotated[int, Interval(ge=1, le=10_000), OnlyWith("environment", "Atari")] = 4
    """Frames an action is repeated for; a transition is this many frames [Mnih 2015]."""
    stack_num: Annotated[int, Interval(ge=1, le=64), OnlyWith("environment", "Atari")] = 4
    """Frames stacked in an observation [Mnih 2015]."""
    noop_max: Annotated[int, Interval(ge=0, le=100_000), OnlyWith("environment", "Atari")] = 30
    """Largest number of no-ops at the start of a game; it decorrelates the environments [Mnih 2015]."""
    episodic_life: Annotated[bool, OnlyWith("environment", "Atari")] = True
    """A lost life ends the learning episode; the game and its return go on [Mnih 2015]."""
    reward_clipping: Annotated[bool, OnlyWith("environment", "Atari")] = True
    """Train on the sign of the reward; returns are reported unclipped [Mnih 2015]."""
    repeat_action_probability: Annotated[Share, OnlyWith("environment", "Atari")] = 0.0
    """Probability that a frame repeats the last action [0: Mnih 2015; 0.25: Machado et al. 2018, 1709.06009]."""
    use_fire_reset: Annotated[bool, OnlyWith("environment", "Atari")] = True
    """Press FIRE at the start of games that wait for it [OpenAI Baselines]."""
    max_num_frames_per_episode: Annotated[int, Interval(ge=1, le=2**31 - 1), OnlyWith("environment", "Atari")] = 108_000
    """Frames after which a game is cut off, as a truncation [30 minutes: Machado 2018]."""

    # Measuring
    measure: bool = True
    """Measure the gradient noise scale (A2C: also of every fourth update's gradient); training is bitwise the same."""
    measure_every: PositiveInt | None = None
    """Updates from one measurement by loss to the next [20 in the first 40, then for 2 % of time: A2C 140, PPO 28]."""
    num_groups: Annotated[int, Interval(ge=1, le=65_536)] | None = None
    """Groups K that a rollout is split into; divides num_envs [the largest divisor from 4 to 16]."""
    unit: Unit = "environment"
    """Independent unit: environment, or transition (which treats transitions as independent; for one environment)."""
    window: Annotated[int, Interval(ge=1, le=10**6)] = 64
    """Measurements that the running noise scale is pooled over."""
    design_effect_every: CountOrZero = 4
    """Measurements between two that also split the rollout by transition, for the design effect; 0: none does."""
    by_layer: bool = False
    """Record the moments of every layer as well."""
    preconditioned: bool = False
    """Record the noise scale that the optimiser sees as well, tr(PΣ)/GᵀPG; costs a second pass over the rollout."""

    # Run
    log_every: PositiveInt | None = None
    """Updates from one record to the next; measured updates are always recorded [A2C 10, PPO 1]."""

    # The machine
    num_threads: Annotated[int, Interval(ge=0, le=4096)] | Literal["auto"] = 0
    """Emulator threads of each part; 0: one per core; auto: the fastest number here, found in about a second."""
    num_parts: Annotated[int, Interval(ge=1, le=64)] | None = None
    """Parts of the environments: one is emulated while the network acts for another [on a GPU 2, else 1]."""
    precision: Literal["float32", "tensorfloat32", "bfloat16"] = "float32"
    """Arithmetic: bfloat16 of the CNN alone; tensorfloat32 of all products, on NVIDIA GPUs from 2020 on."""
    fast: bool = True
    """Store rollouts on the device, each frame once, and step in parts; --no-fast: as Stable-Baselines3 does."""

    @property
    def task(self) -> str:
        """The environment's id or the game's name."""
        return self.env or self.game or DEFAULT_GAME

    @property
    def is_atari(self) -> bool:
        """Whether the task is one of ale-py's games, also when it is named by a Gymnasium id (ALE/Pong-v5)."""
        return self.env is None or self.env.startswith("ALE/") or "NoFrameskip" in self.env


@dataclass(frozen=True, kw_only=True)
class ResolvedConfig(TrainConfig):
    """Options of a run in full: nothing is left to the algorithm's defaults."""

    num_envs: NumEnvs = field()
    num_steps: NumSteps = field()
    learning_rate: PositiveFloat = field()
    anneal_learning_rate: bool = field()
    gae_lambda: Share = field()
    vf_coef: FloatOrZero = field()
    normalize_advantage: bool = field()
    log_every: PositiveInt = field()

    @property
    def batch_size(self) -> int:
        """Transitions behind one update."""
        return self.num_envs * self.num_steps

    @property
    def effective_learning_rate(self) -> float:
        """ε(B) = ε*/(1 + B*/B)^α, the centre of the paper's grids (McCandlish et al. 2018, appendix A.2)."""
        return float(self.learning_rate / (1 + self.lr_batch_scale / self.batch_size) ** self.lr_batch_exponent)


A2C_DEFAULTS: Mapping[str, Any] = {
    "num_envs": 16,
    "num_steps": 5,
    "learning_rate": 7e-4,
    "anneal_learning_rate": False,
    "gae_lambda": 1.0,
    "vf_coef": 0.25,
    "normalize_advantage": False,
    "log_every": 10,
}
PPO_DEFAULTS: Mapping[str, Any] = {
    "num_envs": 8,
    "num_steps": 128,
    "learning_rate": 2.5e-4,
    "anneal_learning_rate": True,
    "gae_lambda": 0.95,
    "vf_coef": 0.5,
    "normalize_advantage": True,
    "log_every": 1,
}

CHANGEABLE_ON_RESUME = frozenset(
    {"resume", "out", "total_transitions", "log_every", "checkpoint_seconds", "keep_checkpoints", "device"}
    | {"num_threads", "num_torch_threads", "num_parts", "tensorboard"}
    | {f.name for f in fields(TrainConfig) if f.name.startswith("wandb")}
)
"""Options of where and how long a run runs; all others define the run."""


def resolved(config: TrainConfig) -> ResolvedConfig:
    """Put the algorithm's published defaults in place of None.

    Args:
        config: Options of a user.

    Returns:
        All options that a run trains with.

    Raises:
        ValueError: With the remedy, on values that are out of range, have no effect, or cannot work together.
    """
    check_options(config)
    if config.game is not None and config.env is not None:
        raise ValueError(f"game {config.game} and env {config.env} are two tasks; leave out --game or --env")
    config.check_cooling()
    config.check_evaluation()
    if config.adaptive_rollouts > 1 and not config.measure:
        raise ValueError(f"adaptive_rollouts {config.adaptive_rollouts} follow measurements; leave out --no-measure")
    if config.env is not None and config.env.startswith(ENVPOOL):
        config = replace(config, env=config.env.removeprefix(ENVPOOL), vectorization="envpool")
    if config.vectorization != "sync" and config.is_atari:
        raise ValueError(
            f"vectorization {config.vectorization} is for --env, not for Atari games, which ale-py's threads play; "
            "leave it out (EnvPool's own Atari is --env envpool:Pong-v5)"
        )
    check_effect(config, TrainConfig(), {"environment": "Atari" if config.is_atari else str(config.env)})
    defaults = A2C_DEFAULTS if config.algo == "a2c" else PPO_DEFAULTS
    options = {option.name: getattr(config, option.name) for option in fields(TrainConfig)}
    options["game"] = config.task if config.env is None else None
    values: dict[str, Any] = {name: defaults.get(name) if value is None else value for name, value in options.items()}
    full = ResolvedConfig(**values)
    shape = full.num_envs, full.num_steps
    check_seed(full.seed, full.num_envs)
    if full.algo == "ppo":
        if full.minibatch_size is not None:
            full = replace(full, num_minibatches=minibatches_of(full.minibatch_size, *shape))
        check_minibatches(full.num_minibatches, *shape)
    check_rollout_fits(*shape, stack_num=full.stack_num if full.is_atari else None)
    return full
