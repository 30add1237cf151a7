"""The batch that a run trained with: its shape, the flags that set it, and its learning rate at other batch sizes.

Everything is read from the options and facts that stand in a run's config.json, so that the closing words of a run and
`rlgns show` describe it alike.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rlgns.runs.batch_advice import BatchAdvisor, Flags
from rlgns.runs.batch_rates import rate_ratio
from rlgns.runs.json_files import is_number
from rlgns.runs.saved_run import SavedRun

MIN_ENVIRONMENTS = 4
"""Fewest environments that the noise scale can be measured with, and so the fewest that are ever recommended."""

ADAPTIVE = {"rmsprop", "adam", "adamw", "lamb"}
"""Optimisers whose best learning rate grows with the root of the batch size (McCandlish et al. 2018)."""

SIGNAL = 128
"""Exit codes above are those of runs that a signal has stopped."""

QUADRATIC_GROUPS = 8
"""The batch of the quadratic task is a multiple of this number."""


@dataclass(frozen=True, slots=True)
class TrainedBatch:
    """The batch behind one update, as so many independent units of the same length.

    Attributes:
        count: Environments, sequences or images.
        length: Transitions of one environment, tokens of one sequence; 1 for images.
        unit: Name of the independent unit: "environment".
        examples: What an example is called, in the plural: "transitions".
        count_flag: The flag that sets `count`.
        length_flag: The flag that sets `length`; empty where there is none.
        smallest: Smallest count that is recommended.
        multiple_of: A recommended count is a multiple of this number.
        learning_rate: Learning rate at the start of the run, at this batch.
        rate_exponent: Power α of the rule ε(B) = ε*/(1 + B*/B)^α.
        scales_rate: Whether the run's own options scale the learning rate with the batch.
        num_minibatches: PPO's minibatches; None for other algorithms.
        fixes_minibatch_size: Whether the run's options give the size of a minibatch and not the number.
        vf_coef: Weight of the value loss; None where there is none.
    """

    count: int
    length: int
    unit: str
    examples: str
    count_flag: str
    length_flag: str
    smallest: int
    multiple_of: int
    learning_rate: float
    rate_exponent: float
    scales_rate: bool
    num_minibatches: int | None = None
    fixes_minibatch_size: bool = False
    vf_coef: float | None = None

    @property
    def size(self) -> int:
        """Examples behind one update."""
        return self.count * self.length

    def learning_rate_at(self, size: float, noise_scale: float) -> float:
        """The learning rate at another batch size, ε(B) = ε*/(1 + B*/B)^α with B* at the noise scale.

        Source: McCandlish et al. 2018, arXiv:1812.06162, equation 2.6 and appendix A.2.

        Args:
            size: B, examples.
            noise_scale: B*, examples.
        """
        return self.learning_rate * rate_ratio(self.size, size, noise_scale, self.rate_exponent)

    def minibatch_option(self, size: int, number: int) -> tuple[str, int]:
        """The flag that splits a batch into minibatches, and its value: the one that the run was given.

        Args:
            size: Examples of the batch.
            number: Number of minibatches.
        """
        if self.fixes_minibatch_size:
            return "--minibatch-size", size // number
        return "--num-minibatches", number

    def nearest_count(self, size: float) -> int:
        """The count of units whose batch is nearest to a size: a power of two, or three times one.

        Such counts split evenly into groups and minibatches. The nearest is the one with the smallest ratio.

        Args:
            size: Examples, above 0.
        """
        wanted = max(size / self.length / self.multiple_of, 1e-300)
        power = 2.0 ** math.floor(math.log2(max(wanted, 1)))
        choices = [int(max(1, factor * power)) for factor in (1, 1.5, 2)]
        best = min(choices, key=lambda choice: abs(math.log(choice / wanted)))
        least = math.ceil(self.smallest / self.multiple_of)
        return max(best, least) * self.multiple_of


def trained_batch(run: SavedRun) -> TrainedBatch:
    """The batch of a run in reinforcement learning, of a supervised run, or of a synthetic task.

    Args:
        run: The run, as its config.json describes it.
    """
    options = run.options
    in_environments = run.shape is not None
    count, length = run.shape or _independent_units(run)
    unit = "environment" if in_environments else "sequence" if length > 1 else "example"
    if in_environments and options.get("unit") == "transition":
        unit = "transition"
    return TrainedBatch(
        count=count,
        length=length,
        unit=unit,
        examples=run.unit,
        count_flag="--num-envs" if in_environments else "--batch-size",
        length_flag="--num-steps" if in_environments else "",
        smallest=_smallest(unit),
        multiple_of=_multiple(run),
        learning_rate=run.learning_rate,
        rate_exponent=_rate_exponent(options, in_environments=in_environments),
        scales_rate=_scales_rate(options),
        num_minibatches=_whole(options, "num_minibatches") if options.get("algo") == "ppo" else None,
        fixes_minibatch_size=options.get("minibatch_size") is not None,
        vf_coef=float(options["vf_coef"]) if is_number(options.get("vf_coef")) else None,
    )


def remedies_of(run: SavedRun, num_updates: int, directory: str = "") -> BatchAdvisor:
    """What knows the flags with which a run is measured more often, or made longer.

    Args:
        run: The run.
        num_updates: Number of the last measured update.
        directory: The run's directory as it is typed, if it holds a checkpoint to continue from.
    """
    options, ended_at_goal = run.options, bool(run.goals) and None not in run.goals.values()
    was_stopped = directory and (run.exit_code is None or run.exit_code > SIGNAL)
    if run.shape is not None:
        planned = _positive(options, "total_transitions") if was_stopped else None
        return BatchAdvisor(run.batch_size, Flags(), num_updates, None, ended_at_goal, planned, directory)
    steps, epochs = _positive(options, "max_steps"), _positive(options, "max_epochs")
    num_train = _whole(run.facts, "num_train")
    flag, length = "--max-steps", float(max(run.steps, 1))
    if not steps and epochs and num_train:
        flag, length = "--max-epochs", run.examples / run.batch_size * trained_batch(run).count / num_train
    every = "--log-every" if run.task == "quadratic" else None
    planned = (steps if flag == "--max-steps" else epochs) if was_stopped else None
    flags = Flags(length=flag, measure_every=every)
    return BatchAdvisor(run.batch_size, flags, num_updates, length, ended_at_goal, planned, directory)


def _independent_units(run: SavedRun) -> tuple[int, int]:
    """Number of independent examples in a batch, and the length of each, for instance of a sequence of tokens."""
    count = _whole(run.options, "batch_size") or run.batch_size
    return (count, run.batch_size // count) if run.batch_size % count == 0 else (run.batch_size, 1)


def _smallest(unit: str) -> int:
    return 1 if unit == "transition" else MIN_ENVIRONMENTS


def _multiple(run: SavedRun) -> int:
    """What the count has to be divisible by: the ranks, and the groups where the user has set them."""
    own = QUADRATIC_GROUPS if run.task == "quadratic" else _whole(run.options, "num_groups") or 1
    return math.lcm(own, _whole(run.facts, "num_ranks") or 1)


def _rate_exponent(options: Mapping[str, Any], *, in_environments: bool) -> float:
    """½ for RMSProp and Adam, 1 for SGD; where the run scales its rate by a rule, the power of that rule."""
    if options.get("lr_batch_scale") and is_number(options.get("lr_batch_exponent")):
        return float(options["lr_batch_exponent"])
    return 0.5 if in_environments or options.get("optimizer") in ADAPTIVE else 1.0


def _scales_rate(options: Mapping[str, Any]) -> bool:
    return bool(options.get("lr_batch_scale")) or options.get("lr_scaling", "none") not in ("none", None)


def _whole(values: Mapping[str, Any], key: str) -> int | None:
    value = values.get(key)
    return int(value) if isinstance(value, int | float) and is_number(value) and value >= 1 else None


def _positive(values: Mapping[str, Any], key: str) -> float | None:
    value = values.get(key)
    return float(value) if isinstance(value, int | float) and is_number(value) and value > 0 else None
