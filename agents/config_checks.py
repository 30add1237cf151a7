"""Checks of options that have to fit together: seeds, PPO's minibatches, and the memory of a rollout."""

from __future__ import annotations

from rlgns.runs.memory import check_memory

FRAME_BYTES = 84 * 84
"""Memory of one frame of an Atari observation."""

EMULATOR_BYTES = 500_000
"""Lower estimate of the memory of one Atari emulator; 1 MB is measured."""

VECTOR_BYTES = 16
"""Lower estimate of the memory of one transition where observations are vectors."""

ENVIRONMENT_BYTES = 1000
"""Lower estimate of the memory of one environment that is no Atari game."""


def check_seed(seed: int, num_envs: int) -> None:
    """Raise ValueError if environment i could not be seeded with seed + i, which has to be below 2³¹."""
    if seed > 2**31 - num_envs:
        raise ValueError(f"seed {seed} is too large; give --seed from 0 to {2**31 - num_envs}")


def check_minibatches(num_minibatches: int, num_envs: int, num_steps: int) -> None:
    """Raise ValueError if a rollout cannot be split into equal minibatches of two transitions or more."""
    batch_size = num_envs * num_steps
    if batch_size // num_minibatches < 2:
        raise ValueError(
            f"num_minibatches {num_minibatches} leaves fewer than 2 of {batch_size} transitions to a minibatch, which "
            "cannot be normalised; use a smaller --num-minibatches"
        )
    if batch_size % num_minibatches:
        raise ValueError(
            f"num_minibatches {num_minibatches} does not divide the batch of {num_envs} × {num_steps} = {batch_size} "
            f"transitions; use --num-minibatches {_nearest_divisors(batch_size, num_minibatches)}"
        )


def minibatches_of(minibatch_size: int, num_envs: int, num_steps: int) -> int:
    """Number of minibatches of a given size.

    Args:
        minibatch_size: Transitions of a minibatch.
        num_envs: Environments N.
        num_steps: Time steps T.

    Raises:
        ValueError: If the size does not divide the batch, or is a single transition.
    """
    batch_size = num_envs * num_steps
    if minibatch_size < 2:
        raise ValueError(
            f"minibatch_size {minibatch_size} is a single transition, which cannot be normalised; use --minibatch-size "
            f"{_nearest_divisors(batch_size, 2)}"
        )
    if batch_size % minibatch_size:
        raise ValueError(
            f"minibatch_size {minibatch_size} does not divide the batch of {num_envs} × {num_steps} = {batch_size} "
            f"transitions; use --minibatch-size {_nearest_divisors(batch_size, minibatch_size)}"
        )
    return batch_size // minibatch_size


def _nearest_divisors(number: int, wanted: int) -> str:
    """The divisors of `number` next to one that is none, below and above, in words."""
    below = next(k for k in range(min(wanted, number), 0, -1) if number % k == 0)
    above = next((k for k in range(wanted, number + 1) if number % k == 0), below)
    return " or ".join(str(divisor) for divisor in sorted({below, above}))


def check_rollout_fits(num_envs: int, num_steps: int, stack_num: int | None) -> None:
    """Raise ValueError if this machine cannot hold a rollout.

    Args:
        num_envs: Environments N.
        num_steps: Time steps T.
        stack_num: Frames in an observation of an Atari game; None: observations are vectors.
    """
    is_atari = stack_num is not None
    transition, environment = (FRAME_BYTES, EMULATOR_BYTES) if is_atari else (VECTOR_BYTES, ENVIRONMENT_BYTES)
    first_stacks = num_envs * stack_num * FRAME_BYTES if stack_num is not None else 0
    check_memory(
        num_envs * num_steps * transition + num_envs * environment + first_stacks,
        f"a rollout of num_envs {num_envs:,} × num_steps {num_steps:,}",
        "use a smaller --num-envs or --num-steps",
    )
