"""The results of trial steps and trial updates, as records, lines for the terminal, and figures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlgns.agents.line_search import LineSearch
from rlgns.agents.probe_words import wrapped
from rlgns.agents.update_trials import LOSSES, SettingTrial, UpdateTrials
from rlgns.noise.step_fits import GainFit
from rlgns.noise.words import in_words

SMALL_P = 0.01
"""p-value below which a fit is called bad."""

CLEARLY = 2.0
"""Standard errors by which a difference is called clear."""


def trial_records(result: LineSearch, checkpoint: str, transitions: int) -> list[dict[str, Any]]:
    """One flat record for each loss and batch size, as `probe.jsonl` holds them.

    Args:
        result: The result.
        checkpoint: Name of the checkpoint.
        transitions: Transitions after which it was written.
    """
    return [
        {
            "probe/checkpoint": checkpoint,
            "progress/transitions": transitions,
            "trial/loss": loss,
            "trial/num_envs": row.size // result.num_steps,
            "trial/batch_size": row.size,
            "trial/gain": row.gain,
            "trial/gain_error": row.error,
            "trial/learning_rate": row.factor * result.middles[loss],
            "trial/is_at_an_end": row.is_at_an_end,
            "trial/half_gain_batch": result.fits[loss].batch,
            "trial/half_gain_batch_low": result.fits[loss].low,
            "trial/half_gain_batch_high": result.fits[loss].high,
            "trial/largest_gain": result.fits[loss].largest,
            "trial/misfit": result.fits[loss].misfit,
        }
        for loss, rows in result.sizes.items()
        for row in rows
    ]


def trial_lines(result: LineSearch) -> list[str]:
    """The trial steps as lines of at most 80 columns.

    Args:
        result: The result.
    """
    lines = wrapped(
        f"Trial steps, judged on {result.num_held_out:,} transitions of other environments, {result.seconds:.0f} s: "
        f"the best decrease of a loss among nine rates, each twice the one before; the run's is "
        f"{result.learning_rate:.2g}."
    )
    lines += ["", f"  {'loss':8}{'batch':>8}  {'environments':>12}  {'best rate':>11}  decrease"]
    for loss, rows in result.sizes.items():
        for row in rows:
            rate = f"{row.factor * result.middles[loss]:.2g}" + ("*" if row.is_at_an_end else " ")
            batch = f"{row.size:8,}  {row.size // result.num_steps:12,}"
            lines.append(f"  {loss:8}{batch}  {rate:>11}  {row.gain:.2g} ± {2 * row.error:.1g}")
    lines.append("")
    if any(row.is_at_an_end for rows in result.sizes.values() for row in rows):
        lines += wrapped("* The best rate is the smallest or the largest that was tried.")
    for loss, fit in result.fits.items():
        lines += wrapped(_half_gain(loss, fit))
    return lines


def _half_gain(loss: str, fit: GainFit) -> str:
    if math.isnan(fit.batch):
        return f"Steps of the {loss} loss gain nothing clearly at these batches; its noise hides the gradient in them."
    if math.isinf(fit.high):
        return f"The gain of the {loss} loss still rises with the batch beyond {in_words(fit.low)} transitions."
    doubt = " The gains do not follow the form of the theory." if fit.misfit < SMALL_P else ""
    return (
        f"A step of the {loss} loss gains half of what it can at a batch of {in_words(fit.batch)} "
        f"[{in_words(fit.low)}, {in_words(fit.high)}] transitions.{doubt}"
    )


def trial_figure(
    result: LineSearch, predicted: Mapping[str, tuple[float, float]], title: str, paths: Sequence[Path]
) -> None:
    """Draw the gains of trial steps against the batch size.

    Args:
        result: The result.
        predicted: (B_noise, ΔL_max) of each loss by the Hessian, where they were measured.
        title: What was probed.
        paths: Files to write.
    """
    from rlgns.report.trial_figures import Gains, gains_figure

    panels = [
        Gains(
            f"decrease of {loss} loss",
            [row.size for row in rows],
            [row.gain for row in rows],
            [row.error for row in rows],
            result.fits[loss],
            predicted.get(loss),
        )
        for loss, rows in result.sizes.items()
    ]
    gains_figure(panels, title=title, unit="transitions", paths=paths)


def update_records(result: UpdateTrials, shared: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One flat record for each setting and loss, as `probe.jsonl` holds them.

    Args:
        result: The result.
        shared: Entries of every record: checkpoint and progress.
    """
    records = []
    for row in result.rows:
        for loss in LOSSES:
            (gain, error), (difference, difference_error) = row.gain(loss), row.against(result.base, loss)
            records.append({
                **shared,
                "update/loss": loss,
                "update/num_envs": row.setting.num_envs,
                "update/num_epochs": row.setting.num_epochs,
                "update/num_minibatches": row.setting.num_minibatches,
                "update/carries_state": row.setting.carries_state,
                "update/is_own": row is result.base,
                "update/num_steps": result.num_steps,
                "update/num_updates": result.num_updates,
                "update/num_rounds": result.num_rounds,
                "update/gain": gain,
                "update/gain_error": error,
                "update/difference": difference,
                "update/difference_error": difference_error,
            })  # fmt: skip
    return records


AXES = {"num_envs": "environments", "num_epochs": "epochs", "num_minibatches": "minibatches"}
"""The numbers that are changed, and what they count."""


def update_lines(result: UpdateTrials) -> list[str]:
    """The trial updates as lines of at most 80 columns.

    Args:
        result: The result.
    """
    lines = wrapped(
        f"Trial updates, judged on {result.num_held_out:,} transitions of other environments, {result.seconds:.0f} s: "
        f"decrease of a loss by {result.num_updates} updates in a row, {result.num_rounds} times, ± 2 errors."
    )
    lines += ["", f"  {'envs':>5}{'epochs':>8}{'minibatches':>13}  {'optimiser':11}{'policy loss':20}total loss"]
    for row in result.rows:
        setting = row.setting
        state = "as it was" if setting.carries_state else "new"
        numbers = f"{setting.num_envs:5,}{setting.num_epochs:8}{setting.num_minibatches:13,}"
        mark = "*" if row is result.base else " "
        gains = [_with_errors(*row.gain(loss)) for loss in ("policy", "total")]
        lines.append(f"{mark} {numbers}  {state:11}{gains[0]:20}{gains[1]}".rstrip())
    lines += ["", "* this run"]
    for axis, word in AXES.items():
        rows = result.along(axis)
        if len(rows) > 1:
            for loss in ("policy", "total"):
                lines += wrapped(_best_of(rows, result, axis, word, loss))
    return lines


def _with_errors(gain: float, error: float) -> str:
    return f"{gain:.2g} ± {2 * error:.1g}"


def _best_of(rows: Sequence[SettingTrial], result: UpdateTrials, axis: str, word: str, loss: str) -> str:
    """Which numbers gain most, whether the run's own is among them, and whether any gains at all."""
    best = max(rows, key=lambda row: row.gain(loss)[0])
    own = getattr(result.base.setting, axis)
    as_good = [getattr(row.setting, axis) for row in rows if row is best or not _is_clearly_less(row, best, loss)]
    most, error = best.gain(loss)
    if most <= CLEARLY * error:
        best_off = f"{_listed(as_good, 'and')} {'comes' if len(as_good) == 1 else 'come'} off best"
        return f"No number of {word} is seen to lower the {loss} loss; {best_off}."
    if as_good == [own]:
        return f"The {loss} loss gains the most with this run's {_counted([own], word)}."
    if own in as_good:
        others = _listed([number for number in as_good if number != own])
        return f"The {loss} loss gains as much with this run's {_counted([own], word)} as with {others}."
    share = result.base.gain(loss)[0] / most
    part = f"gain {share:.0%} of it" if share > 0 else "gain nothing"
    return f"The {loss} loss gains the most with {_counted(as_good, word)}; this run's {own:,} {part}."


def _is_clearly_less(row: SettingTrial, best: SettingTrial, loss: str) -> bool:
    difference, error = row.against(best, loss)
    return difference < -CLEARLY * error


def _listed(numbers: Sequence[int], last: str = "or") -> str:
    words = [f"{number:,}" for number in numbers]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} {last} {words[-1]}"


def _counted(numbers: Sequence[int], word: str) -> str:
    return f"{_listed(numbers)} {word.removesuffix('s') if list(numbers) == [1] else word}"


def update_figure(result: UpdateTrials, title: str, paths: Sequence[Path]) -> None:
    """Draw the gains of trial updates against environments, epochs and minibatches.

    Args:
        result: The result.
        title: What was probed.
        paths: Files to write.
    """
    from rlgns.report.trial_figures import Tried, updates_figure

    rows = []
    for loss in ("policy", "total"):
        panels = []
        for axis, word in AXES.items():
            tried = result.along(axis)
            if len(tried) > 1:
                gains = [row.gain(loss) for row in tried]
                panels.append(
                    Tried(
                        word,
                        getattr(result.base.setting, axis),
                        [getattr(row.setting, axis) for row in tried],
                        [gain for gain, _ in gains],
                        [error for _, error in gains],
                    )
                )
        rows.append((f"decrease of the {loss} loss", panels))
    updates_figure(rows, title=title, paths=paths)
