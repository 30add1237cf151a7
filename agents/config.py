"""What a training run can be told: every option with its unit, its default and where the default comes from.

Free of torch, so that `--help` and bad input are answered at once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from rlgns.noise.grouping import Unit
from rlgns.runs.options import flag


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Train A2C or PPO on many environments and measure the gradient noise scale while training."""

    # What to train on
    game: str = "breakout"
    """Atari game by ale-py's name, in any spelling (ms_pacman, MsPacman, ALE/MsPacman-v5)."""
    env: str | None = None
    """Any other Gymnasium environment by id (CartPole-v1), instead of a game."""
    algo: Literal["a2c", "ppo"] = "a2c"
    """Algorithm: a2c (Mnih et al. 2016, arXiv:1602.01783), ppo (Schulman et al. 2017, arXiv:1707.06347)."""
    total_transitions: int = 300_000
    """Transitions to train for (decisions of one environment; 4 frames each on Atari); published runs: 10 million."""
    goals: tuple[float, ...] = ()
    """Mean returns to reach; what each took is recorded, and the run ends at the last."""
    episode_window: int = 100
    """Finished episodes that the mean return is taken over; no goal is reached before there are as many."""
    seed: int = 0
    """Seed of networks, actions and environments; environment i gets seed + i."""

    # The batch: num_envs × num_steps transitions behind one update
    num_envs: int | None = None
    """Environments in parallel [A2C 16, PPO 8: Mnih 2016, Schulman 2017]."""
    num_steps: int | None = None
    """Transitions of each environment in one rollout [A2C 5, PPO 128: the same]."""

    # The algorithm
    learning_rate: float | None = None
    """Step size [A2C 7e-4, PPO 2.5e-4: Mnih 2016, Schulman 2017]."""
    lr_batch_scale: float = 0.0
    """B* of the rate learning_rate/(1 + B*/B)^α, in transitions; 0: the same at every batch size [McCandlish 2018]."""
    lr_batch_exponent: float = 0.5
    """α of that rate [½ for RMSProp and Adam: McCandlish 2018, who give ½ to 1]."""
    anneal_learning_rate: bool | None = None
    """Lower the learning rate linearly to 0 over the run [A2C no, as Stable-Baselines3; PPO yes: Schulman 2017]."""
    gamma: float = 0.99
    """Discount factor per transition [Mnih 2015]."""
    gae_lambda: float | None = None
    """λ of generalised advantage estimation [A2C 1, PPO 0.95: Schulman 2016, arXiv:1506.02438]."""
    ent_coef: float = 0.01
    """Weight of the entropy bonus in the loss [Mnih 2016, Schulman 2017]."""
    vf_coef: float | None = None
    """Weight of the value loss [A2C 0.25: OpenAI Baselines; PPO 0.5: Huang et al. 2022, "37 details"]."""
    max_grad_norm: float = 0.5
    """Largest norm of the gradient; longer ones are clipped, after measuring [OpenAI Baselines]."""
    rmsprop_alpha: float = 0.99
    """A2C: decay of RMSProp's mean square [Mnih 2016]."""
    optimizer_eps: float = 1e-5
    """ε of RMSProp (A2C) or Adam (PPO) [OpenAI Baselines; Huang 2022]."""
    num_epochs: int = 4
    """PPO: passes over a rollout [Schulman 2017, 3 there; 4 in OpenAI Baselines]."""
    num_minibatches: int = 4
    """PPO: minibatches a pass is split into [OpenAI Baselines]."""
    clip_coef: float = 0.1
    """PPO: ε of the clipped surrogate [Schulman 2017]."""
    anneal_clip_coef: bool = True
    """PPO: lower ε linearly to 0 over the run [Schulman 2017]."""
    normalize_advantage: bool | None = None
    """Give advantages mean 0 and variance 1 [A2C no, PPO yes, by minibatch: OpenAI Baselines]."""

    # Atari: ale-py's own names
    frameskip: int = 4
    """Frames an action is repeated for; a transition is this many frames [Mnih 2015]."""
    stack_num: int = 4
    """Frames stacked in an observation [Mnih 2015]."""
    noop_max: int = 30
    """Largest number of no-ops at the start of a game; it makes environments start apart [Mnih 2015]."""
    episodic_life: bool = True
    """A lost life ends the learning episode; the game and its return go on [Mnih 2015]."""
    reward_clipping: bool = True
    """Train on the sign of the reward; returns are reported unclipped [Mnih 2015]."""
    repeat_action_probability: float = 0.0
    """Probability that a frame repeats the last action [0: Mnih 2015; 0.25: Machado et al. 2018, 1709.06009]."""
    use_fire_reset: bool = True
    """Press FIRE at the start of games that wait for it [OpenAI Baselines]."""
    max_num_frames_per_episode: int = 108_000
    """Frames after which a game is cut off, as a truncation [30 minutes: Machado 2018]."""
    num_threads: int | Literal["auto"] = 0
    """Emulator threads of each part; 0: one a core; auto: as many as are fastest here, which takes a second to find."""
    num_parts: int | None = None
    """Parts of the environments, one emulated while the network acts for another [on a GPU 2, else 1]."""

    # Measuring
    measure: bool = True
    """Measure the gradient noise scale, of A2C's own updates every fourth; training is bitwise the same without."""
    measure_every: int | None = None
    """Updates from one measurement by loss to the next [20 in the first 40, then for 2 % of time: A2C 105, PPO 28]."""
    num_groups: int | None = None
    """Groups K that a rollout is split into; divides num_envs [the largest divisor from 4 to 8]."""
    unit: Unit = "environment"
    """Independent unit: environment, or transition (treats transitions as independent; all one environment allows)."""
    window: int = 64
    """Measurements that the running noise scale is pooled over."""
    design_effect_every: int = 4
    """Measurements from one that is also split by transition to the next, for the design effect; 0: never."""
    by_layer: bool = False
    """Record the moments of every layer too."""
    preconditioned: bool = False
    """Record the noise scale that the optimiser sees, tr(PΣ)/GᵀPG, too; costs a second pass."""

    # Where results go
    out: Path | None = None
    """Run directory [a fresh one under runs/]."""
    resume: Path | None = None
    """Run directory to continue; its options hold, only where and how long it runs may be changed."""
    log_every: int | None = None
    """Updates from one record to the next; measured updates always leave one [A2C 10, PPO 1]."""
    checkpoint_seconds: float = 60.0
    """Seconds from one checkpoint to the next: what a killed process loses at most."""
    wandb: Literal["online", "offline", "disabled"] = "online"
    """Weights & Biases; without a key or a network a run goes offline by itself."""
    wandb_project: str = "rlgns"
    """W&B project."""
    wandb_entity: str | None = None
    """W&B user or team [the key's own]."""
    wandb_group: str | None = None
    """W&B group [the game or environment and the algorithm]."""
    wandb_job_type: str | None = "train"
    """W&B job type."""
    wandb_tags: tuple[str, ...] = ()
    """W&B tags."""
    wandb_notes: str | None = None
    """W&B notes."""
    wandb_name: str | None = None
    """W&B display name [the run directory's]."""

    # The machine
    device: str = "auto"
    """Where the network runs: auto, cpu, cuda, cuda:1, …; under torchrun or srun, auto is each rank's own GPU."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the features' layers (the CNN); parameters, heads, losses and the optimiser stay float32."""
    fast: bool = True
    """Keep rollouts on the device and each frame once, step environments in parts; no: as Stable-Baselines3 does."""
    num_torch_threads: int | None = None
    """CPU threads of the network [one a core]."""

    @property
    def task(self) -> str:
        """What is trained on, in one word."""
        return self.env or self.game

    @property
    def batch_size(self) -> int:
        """Transitions behind one update."""
        assert self.num_envs and self.num_steps, "resolved"
        return self.num_envs * self.num_steps

    @property
    def effective_learning_rate(self) -> float:
        """ε(B) = ε*/(1 + B*/B)^α, the centre of the paper's grids (McCandlish et al. 2018, appendix A.2)."""
        assert self.learning_rate, "resolved"
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
    {"resume", "out", "total_transitions", "log_every", "checkpoint_seconds", "device", "num_threads"}
    | {"num_torch_threads", "num_parts"}
    | {f.name for f in fields(TrainConfig) if f.name.startswith("wandb")}
)
"""Where and how long a run runs; everything else is what the run is."""


def resolved(config: TrainConfig) -> TrainConfig:
    """The configuration with the algorithm's published defaults in place of None.

    Raises ValueError, with the remedy, on values that cannot work.
    """
    defaults = A2C_DEFAULTS if config.algo == "a2c" else PPO_DEFAULTS
    config = replace(config, **{name: value for name, value in defaults.items() if getattr(config, name) is None})
    _check_ranges(config)
    if config.algo == "ppo" and config.batch_size // config.num_minibatches < 2:
        raise ValueError(
            f"num_minibatches {config.num_minibatches} leaves fewer than 2 of {config.batch_size} transitions to a "
            "minibatch, which cannot be normalised; use a smaller --num-minibatches"
        )
    if config.algo == "ppo" and config.batch_size % config.num_minibatches:
        divisors = [k for k in range(1, config.batch_size + 1) if config.batch_size % k == 0]
        near = sorted(divisors, key=lambda k: abs(k - config.num_minibatches))[:2]
        raise ValueError(
            f"num_minibatches {config.num_minibatches} does not divide the batch of {config.num_envs} × "
            f"{config.num_steps} = {config.batch_size} transitions; use --num-minibatches "
            + " or ".join(str(k) for k in sorted(near))
        )
    return config


def _check_ranges(config: TrainConfig) -> None:
    positive = (
        "total_transitions", "num_envs", "num_steps", "learning_rate", "max_grad_norm", "num_epochs",
        "num_minibatches", "clip_coef", "frameskip", "stack_num", "max_num_frames_per_episode", "measure_every",
        "num_groups", "window", "episode_window", "log_every", "checkpoint_seconds", "num_torch_threads",
        "optimizer_eps", "num_parts",
    )  # fmt: skip
    for name in positive:
        value = getattr(config, name)
        if value is not None and not value > 0:
            raise ValueError(f"{name} {value} is not positive; give a positive {flag(name)}")
    if not all(math.isfinite(goal) for goal in config.goals):
        raise ValueError(f"goals {config.goals} are not all finite; give mean returns, as in --goals 5 20")
    for name in (
        "ent_coef", "vf_coef", "noop_max", "num_threads", "design_effect_every", "seed", "lr_batch_scale",
        "lr_batch_exponent",
    ):  # fmt: skip
        if getattr(config, name) != "auto" and not getattr(config, name) >= 0:
            raise ValueError(f"{name} {getattr(config, name)} is negative; give {flag(name)} 0 or more")
    assert config.num_envs, "resolved"
    if config.seed > 2**31 - config.num_envs:
        raise ValueError(f"seed {config.seed} is too large; give --seed from 0 to {2**31 - config.num_envs}")
    for name in ("gamma", "gae_lambda", "repeat_action_probability", "rmsprop_alpha"):
        if not 0 <= getattr(config, name) <= 1:
            raise ValueError(f"{name} {getattr(config, name)} is outside 0 … 1; give {flag(name)} within")
