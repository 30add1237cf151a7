"""A recommendation in words: the box at the end of a run, in lines of at most 80 columns.

Every line answers one question: what to type, what that costs and saves, what it rests on, what it means for the time
on this machine, and what is not known.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence

from rlgns.noise.history import History
from rlgns.noise.reliability import reliability_warnings
from rlgns.noise.words import in_words
from rlgns.runs.batch_advice import NO_BREAK, BatchAdvisor
from rlgns.runs.recommendation import KEEP_WITHIN, Ratio, Recommendation
from rlgns.runs.speeds import Objective, Speeds
from rlgns.runs.step_size_words import late_step_size, step_size_sentence

WIDTH = 80
"""Width of the box in characters."""

INDENT = 16
"""Columns before the text of a line, which its label fills."""


def box_lines(
    advice: Recommendation,
    history: History,
    remedies: BatchAdvisor,
    *,
    run: str,
    speeds: Speeds | None = None,
    objective: Objective = "balance",
    copies: str = "",
    can_probe: bool = True,
) -> list[str]:
    """The recommendation in lines.

    Args:
        advice: The recommendation.
        history: The measurements that it was made from.
        remedies: Knows the flags with which a run is measured more often, or made longer.
        run: The run's directory, as it is typed.
        speeds: Speeds on this machine; None if they have not been measured.
        objective: What the batch was chosen for.
        copies: A sentence that names environments that are copies of one another; empty if none are.
        can_probe: Whether `rlgns probe` can tell more about the run.

    Returns:
        The lines, without line ends.
    """
    if advice.verdict == "not measured":
        return wrapped("The noise scale was not measured in this run, so nothing is known about its batch.", "") + (
            _labelled("Try", [_flag("--measure", "", "leave out --no-measure")])
        )
    lines = wrapped(headline(advice, objective), "")
    if advice.updates is None or advice.examples is None or advice.scale is None:
        lines += _labelled("Because", [remedies.missing(advice.scale, history.moments(advice.loss))])
        lines += _labelled("Mind", [copies] if copies else [])
        lines += _labelled("Or", _probe(advice, run) if can_probe else [])
        return lines + _labelled("Learning rate", _learning_rate(advice, history))
    lines += _labelled("Try", _flags(advice)) if advice.count != advice.batch.count else []
    lines += _labelled("Expect", [expectation(advice)])
    lines += _labelled("Because", [reason(advice)])
    if advice.probed:
        lines += _labelled("", [f"at the last policy alone a probe found {advice.probed} {advice.batch.examples}"])
    if advice.scale.state != "interval":
        lines += _labelled("", [remedies.missing(advice.scale, history.moments(advice.loss), known=True)])
    lines += _labelled("Minibatches", _minibatches(advice))
    lines += _labelled("Learning rate", _learning_rate(advice, history))
    for sentence in (*_swamped(advice), *_unreliable(advice, history, copies)):
        lines += _labelled("Mind", [sentence])
    if objective == "balance" or advice.is_choosable:
        lines += _labelled("On this machine", _time(advice, speeds, run))
    else:
        why = "the value loss dominates the noise scale" if advice.is_unsafe else "the noise scale has no upper bound"
        lines += _labelled("", [f"no batch is known to be the one for {_aim_words(advice, objective)}: {why}"])
    return lines + _labelled("Not known", _probe(advice, run) if can_probe else [])


def shape_words(advice: Recommendation) -> str:
    """The batch of the run as a product: "16 environments × 5 steps = 80 transitions"."""
    batch = advice.batch
    if batch.length == 1:
        return f"{batch.count:,} {batch.examples}"
    inner = "steps" if batch.length_flag else batch.examples
    noun = "environment" if batch.length_flag else batch.unit
    return f"{_count(batch.count, noun)} × {batch.length:,} {inner} = {batch.size:,} {batch.examples}"


def headline(advice: Recommendation, objective: Objective) -> str:
    """What the measurements say about the batch, in one sentence.

    Args:
        advice: The recommendation.
        objective: What the batch was chosen for.
    """
    batch = f"Your batch, {shape_words(advice)},"
    if objective != "balance" and advice.is_choosable:
        article = "the" if advice.count == advice.batch.count else "not the"
        return f"{batch} is {article} one for {_aim_words(advice, objective)}."
    sentences = {
        "larger": f"{batch} is small for this task.",
        "smaller": f"{batch} is larger than this task needs.",
        "keep": f"{batch} {_why_kept(advice)}",
        "unclear": f"{batch} {_why_unclear(advice)}",
    }
    return sentences.get(advice.verdict, f"No advice yet about your batch, {shape_words(advice)}.")


def _aim_words(advice: Recommendation, objective: Objective) -> str:
    return "the least time here" if objective == "time" else f"the fewest {advice.batch.examples}"


def _why_unclear(advice: Recommendation) -> str:
    if advice.scale is not None and advice.scale.low >= advice.batch.size / KEEP_WITHIN:
        return "is not too large; whether a larger one would pay is not known yet."
    return "may be too large or too small for this task; that is not known yet."


def _why_kept(advice: Recommendation) -> str:
    batch, scale = advice.batch, advice.scale
    if advice.swamped and advice.is_unsafe:
        return "is larger than the value loss needs, but not than the policy loss needs: keep it."
    if scale is not None and scale.high < batch.size / 2:
        if batch.length_flag and batch.length > 1:
            shorter = _flag(batch.length_flag, max(1, batch.length // 4))
            return f"is larger than this task needs, in as few environments as can be measured: try {shorter}."
        return "is larger than this task needs, and as small as can be measured."
    return "is about right for this task: keep it."


def _flags(advice: Recommendation) -> list[str]:
    """What to type: the shape, the learning rate, and PPO's number of minibatches."""
    batch = advice.batch
    flags = [_flag(batch.count_flag, advice.count)]
    flags += [_flag(batch.length_flag, batch.length)] if batch.length_flag else []
    if not batch.scales_rate:
        flags.append(_flag("--learning-rate", f"{advice.learning_rate:.2g}"))
    if advice.num_minibatches:
        flags.append(_flag(*batch.minibatch_option(advice.size, advice.num_minibatches)))
    bound = " or more" if advice.scale and advice.scale.state != "interval" else ""
    return [" ".join(flags), f"({advice.size:,}{bound} {batch.examples})".replace(" ", NO_BREAK)]


def expectation(advice: Recommendation) -> str:
    """What the recommended batch of `advice` saves and costs; the noise scale must be known."""
    updates, examples, scale = advice.updates, advice.examples, advice.scale
    assert updates and examples and scale, "the caller has checked that the noise scale is known"
    unit = advice.batch.examples
    if advice.count == advice.batch.count:
        _, low, high = scale.efficiency(advice.batch.size)
        share = f"at most {high:.0%}"
        if scale.state == "interval":
            share = f"{high:.0%}" if f"{low:.0%}" == f"{high:.0%}" else f"{low:.0%}–{high:.0%}"
        return f"an update makes {share} of the progress that a gradient without noise would"
    if scale.state != "interval":
        return f"at least {updates.low:.1f} times fewer updates for at most {examples.high:.1f} times the {unit}"
    if advice.count > advice.batch.count:
        return f"{_times(updates)} times fewer updates for {_times(examples)} times the {unit}"
    return f"{_times(_inverse(examples))} times fewer {unit} for {_times(_inverse(updates))} times the updates"


def reason(advice: Recommendation) -> str:
    """The noise scale behind the recommendation `advice`, which must be known, and the confidence in it."""
    scale = advice.scale
    assert scale, "the caller has checked that the noise scale is known"
    number = f"{scale.num_measurements:,} measurements"
    if scale.method == "frozen":
        number = f"probed at the last policy, {_count(scale.num_measurements, 'rollout')}"
    loss = "loss" if advice.loss == "loss" else f"{advice.loss} loss"
    return f"noise scale of the {loss} {scale} {advice.batch.examples}, {number}: {advice.confidence} confidence"


def _minibatches(advice: Recommendation) -> list[str]:
    noise, now, number = advice.minibatch, advice.batch.num_minibatches, advice.num_minibatches
    if noise is None or now is None or number is None:
        return []
    interval = f"{in_words(noise.point)} [{in_words(noise.low)}, " + (
        f"{in_words(noise.high)}]" if math.isfinite(noise.high) else "∞)"
    )
    option = advice.batch.minibatch_option
    (name, wanted), (_, before) = option(advice.size, number), option(advice.batch.size, now)
    each = "" if advice.batch.fixes_minibatch_size else f" of {advice.size // number:,} each"
    words = _flag(name, wanted) + each
    change = f"keep {words}" if wanted == before else f"{words} (now {before})"
    return [
        f"{change}: a minibatch of {interval} {advice.batch.examples} has as much noise as signal for the {noise.loss} "
        "loss within its rollout, in the first epoch"
    ]


def _learning_rate(advice: Recommendation, history: History) -> list[str]:
    batch, step = advice.batch, late_step_size(history)
    if step is None:
        return []
    has_epochs = batch.num_minibatches is not None
    return [step_size_sentence(step, batch.learning_rate, scales_rate=batch.scales_rate, epochs=has_epochs)]


def _swamped(advice: Recommendation) -> list[str]:
    policy, coefficient = advice.swamped, advice.batch.vf_coef
    if policy is None:
        return []
    remedy = (
        f"; {_flag('--vf-coef', f'{coefficient / 4:.2g}')} (now {coefficient:g}) weighs it less" if coefficient else ""
    )
    return [f"this is the value loss's number: it dominates the total, and the policy loss's is {policy}{remedy}"]


def _unreliable(advice: Recommendation, history: History, copies: str) -> list[str]:
    """What makes the interval less reliable than it claims to be."""
    is_probed = advice.scale is not None and advice.scale.method == "frozen"
    unit = advice.batch.unit
    warnings = [] if is_probed else reliability_warnings(history.second_half(advice.loss), f"groups of {unit}s")
    return [*([copies] if copies else []), *warnings]


def _time(advice: Recommendation, speeds: Speeds | None, run: str) -> list[str]:
    batch = advice.batch
    if not batch.length_flag:
        return []
    if speeds is None:
        return [f"which batch takes the least time: {_command(f'rlgns show {run} --minimise time')}"]
    ratio = speeds.time_ratio(advice)
    new, old = speeds.per_second.get(advice.count), speeds.per_second.get(batch.count)
    if new is None or old is None:
        return []
    speed = f"{advice.count} × {batch.length} runs at {new:,.0f} {batch.examples}/s"
    if advice.count == batch.count:
        return [speed]
    if ratio is None:
        return [f"{speed} against {old:,.0f}"]
    return [f"{speed} against {old:,.0f}: {_time_words(ratio)} to the same result"]


def _time_words(ratio: Ratio) -> str:
    if ratio.low > 1:
        return f"{_times(ratio)} times faster"
    if ratio.high < 1:
        return f"{_times(_inverse(ratio))} times longer"
    return f"{_times(ratio)} times the speed, so the time hardly changes or is not known to"


def _probe(advice: Recommendation, run: str) -> list[str]:
    if not advice.batch.length_flag:
        return []
    command = f"rlgns probe {run}"
    if advice.updates is None:
        return [f"measure it more closely at the end of the run: {_command(command)}"]
    lines = [f"environments against rollout length: {_command(f'{command} --surface')}"]
    if advice.scale is not None and advice.scale.state != "interval":
        lines.insert(0, f"an upper bound, which a probe of the last policy may bring in minutes: {_command(command)}")
    return lines


def _times(ratio: Ratio) -> str:
    low, high = (f"{value:.1f}" if value < 10 else f"{value:,.0f}" for value in (ratio.low, ratio.high))
    return low if low == high else f"{low}–{high}"


def _inverse(ratio: Ratio) -> Ratio:
    return Ratio(1 / ratio.high, 1 / ratio.low)


def _flag(name: str, value: object, instead: str = "") -> str:
    return (instead or f"{name} {value}").replace(" ", NO_BREAK)


def _command(command: str) -> str:
    """A command that stays on one line if it fits there; between a flag and its value no line ends in any case."""
    if len(command) <= WIDTH - INDENT - 2:
        return command.replace(" ", NO_BREAK)
    return command.replace("--minimise ", f"--minimise{NO_BREAK}")


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _labelled(label: str, sentences: Sequence[str]) -> list[str]:
    """A label and the text beside it; nothing where there is no text."""
    return wrapped(" ".join(sentences), f"  {label:{INDENT - 2}} ", " " * (INDENT + 1)) if sentences else []


def wrapped(text: str, indent: str, further: str = "") -> list[str]:
    """Text in lines of at most `WIDTH` columns; what a no-break space joins stays on one line where it fits.

    Args:
        text: The text.
        indent: What the first line begins with.
        further: What the other lines begin with.
    """
    wrap = textwrap.TextWrapper(
        WIDTH, initial_indent=indent, subsequent_indent=further, break_on_hyphens=False, break_long_words=False
    )
    return [line.replace(NO_BREAK, " ") for line in wrap.wrap(text)]
