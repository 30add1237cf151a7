"""What to pass to the next training, by Stable-Baselines3's names of arguments.

`make_vec_env` takes n_envs; the algorithm's constructor takes n_steps, batch_size and learning_rate.
"""

from __future__ import annotations

from rlgns.noise.history import History
from rlgns.runs.recommendation import Recommendation
from rlgns.runs.recommendation_words import expectation, headline, reason, wrapped
from rlgns.runs.summary_numbers import MIN_MEASUREMENTS

NAMES = ("n_envs", "n_steps", "batch_size", "learning_rate")


def next_arguments(advice: Recommendation) -> dict[str, float | None]:
    """The recommended values of all arguments; all None where there is no advice.

    Args:
        advice: The recommendation.

    Returns:
        Values by name. PPO's batch_size, a minibatch, is None where nothing is known about it.
    """
    if advice.updates is None:
        return dict.fromkeys(NAMES)
    minibatch = advice.size // advice.num_minibatches if advice.num_minibatches else None
    values = (advice.count, advice.batch.length, minibatch, advice.learning_rate)
    return dict(zip(NAMES, values, strict=True))


def recommendation_text(advice: Recommendation, history: History) -> str:
    """The recommendation, what it saves and costs, and what it rests on, in lines of at most 80 columns.

    Args:
        advice: The recommendation.
        history: The measurements that it was made from.
    """
    lines = wrapped(headline(advice, "balance"), "")
    if advice.updates is None:
        return "\n".join(lines + wrapped(_missing(advice, history), ""))
    values = {name: value for name, value in next_arguments(advice).items() if value is not None}
    if advice.count == advice.batch.count:
        del values["learning_rate"]
    if advice.count != advice.batch.count or advice.num_minibatches not in (None, advice.batch.num_minibatches):
        shown = (
            f"{name}={value:.2g}" if isinstance(value, float) else f"{name}={value}" for name, value in values.items()
        )
        lines += wrapped(f"Try {', '.join(shown)}.", "")
    return "\n".join([*lines, *wrapped(f"{_sentence(expectation(advice))} {_sentence(reason(advice))}", "")])


def _missing(advice: Recommendation, history: History) -> str:
    """What advice would take."""
    number = len(history.second_half("total"))
    if advice.scale is None or number < MIN_MEASUREMENTS:
        return (
            f"Advice takes {MIN_MEASUREMENTS} measurements in the second half of training, which has {number}; train "
            "longer, or measure more often (measure_every)."
        )
    return (
        f"The noise scale of the {advice.loss} loss, {advice.scale} {advice.batch.examples}, is not known well enough "
        "yet; train longer, or measure more often (measure_every)."
    )


def _sentence(words: str) -> str:
    return f"{words[0].upper()}{words[1:]}."
