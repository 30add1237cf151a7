"""The results of probing a supervised run, as records and as lines for the terminal."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rlgns.noise.curvature import CurvatureMoments
from rlgns.noise.history import TRAINED
from rlgns.noise.step_fits import GainFit
from rlgns.noise.words import in_words
from rlgns.runs.records import Record
from rlgns.tasks.probing import LineSearch, SupervisedProbe

WIDTH = 80
"""Width of the lines in characters."""

SMALL_P = 0.01
"""p-value below which a fit is called bad."""


def probe_record(result: SupervisedProbe, shared: Record) -> Record:
    """The flat record of a probe.

    Args:
        result: The result.
        shared: Entries of every record: checkpoint and progress.
    """
    scale = result.moments.noise_scale()
    return {
        **shared,
        "probe/loss": TRAINED,
        "probe/num_groups": result.moments.num_groups,
        "probe/num_batches": result.moments.count,
        "probe/batch_size": result.moments.batch_size,
        "probe/examples": result.num_examples,
        "probe/sq_norm": scale.sq_norm,
        "probe/trace_covariance": scale.trace_covariance,
        "probe/noise_scale": scale.point,
        "probe/noise_scale_low": scale.low,
        "probe/noise_scale_high": scale.high,
        "probe/noise_scale_state": scale.state,
        "time/seconds": result.seconds,
    }


def probe_lines(result: SupervisedProbe, title: str, unit: str) -> list[str]:
    """The result as lines of at most 80 columns.

    Args:
        result: The result.
        title: What was probed, for instance "mnist by sgd after 60,000 images".
        unit: What an example is called, in the plural.
    """
    scale = result.moments.noise_scale()
    effort = f"gradients of {result.num_examples:,} {unit}, {result.seconds:.0f} s"
    lines = textwrap.wrap(f"{title}, frozen: {effort}", WIDTH)
    lines += ["", f"  noise scale of the trained loss   {scale} {unit}", ""]
    if scale.state == "undetermined":
        words = "The loss shows no gradient above its noise yet."
    elif scale.state == "lower bound":
        words = (
            f"At these parameters, batches of {in_words(scale.low)} {unit} make at most half the progress of infinite "
            "ones, so that larger ones pay up to there."
        )
    else:
        words = (
            f"At these parameters noise equals signal in a batch of {in_words(scale.low)} to {in_words(scale.high)} "
            f"{unit}: it makes half the progress of an infinite one, and much larger ones make hardly more."
        )
    if not result.is_precise:
        words += (
            " All examples have been used once; the wanted precision takes more data."
            if result.used_all
            else " The wanted precision takes more examples."
        )
    return lines + textwrap.wrap(words, WIDTH)


def trial_records(result: LineSearch, shared: Record) -> list[Record]:
    """One flat record for each batch size.

    Args:
        result: The result.
        shared: Entries of every record: checkpoint and progress.
    """
    rates = result.rates
    return [
        {
            **shared,
            "trial/loss": TRAINED,
            "trial/batch_size": row.size,
            "trial/gain": row.gain,
            "trial/gain_error": row.error,
            "trial/learning_rate": row.factor * result.middle,
            "trial/best_rate": row.optimum * result.middle,
            "trial/best_rate_error": row.optimum_error * result.middle,
            "trial/is_at_an_end": row.is_at_an_end,
            "trial/half_gain_batch": result.gains.batch,
            "trial/half_gain_batch_low": result.gains.low,
            "trial/half_gain_batch_high": result.gains.high,
            "trial/largest_gain": result.gains.largest,
            "trial/misfit": result.gains.misfit,
            "trial/half_rate_batch": rates.batch if rates else None,
            "trial/half_rate_batch_low": rates.low if rates else None,
            "trial/half_rate_batch_high": rates.high if rates else None,
            "trial/largest_rate": rates.largest * result.middle if rates else None,
        }
        for row in result.sizes
    ]


def trial_lines(result: LineSearch, unit: str) -> list[str]:
    """The trial steps as lines of at most 80 columns.

    Args:
        result: The result.
        unit: What an example is called, in the plural.
    """
    lines = textwrap.wrap(
        f"Trial steps, judged on {result.num_held_out:,} other examples, {result.seconds:.0f} s: the best decrease of "
        f"the loss among rates from 1/16 to 16 times {result.middle:.2g}.",
        WIDTH,
    )
    lines += ["", f"  {'batch':>9}  {'best rate':>22}  decrease"]
    for row in result.sizes:
        rate = (
            f"{row.optimum * result.middle:.2g} ± {2 * row.optimum_error * result.middle:.1g}"
            if math.isfinite(row.optimum) and math.isfinite(row.optimum_error)
            else f"{row.factor * result.middle:.2g}" + ("*" if row.is_at_an_end else "")
        )
        lines.append(f"  {row.size:9,}  {rate:>22}  {row.gain:.2g} ± {2 * row.error:.1g}")
    lines.append("")
    if any(row.is_at_an_end for row in result.sizes):
        lines += textwrap.wrap("* The best rate is the smallest or the largest that was tried.", WIDTH)
    lines += textwrap.wrap(_half("gain", "half of what it can", result.gains, unit), WIDTH)
    if result.rates:
        lines += textwrap.wrap(_half("best rate", "half of the largest", result.rates, unit), WIDTH)
    return lines


def _half(quantity: str, half: str, fit: GainFit, unit: str) -> str:
    if math.isnan(fit.batch):
        return f"The {quantity} of a step does not rise clearly above zero at these batches."
    if math.isinf(fit.high):
        return f"The {quantity} of a step still rises with the batch beyond {in_words(fit.low)} {unit}."
    doubt = " The form of the theory does not fit." if fit.misfit < SMALL_P else ""
    return (
        f"The {quantity} of a step is {half} at a batch of {in_words(fit.batch)} [{in_words(fit.low)}, "
        f"{in_words(fit.high)}] {unit}.{doubt}"
    )


def trial_figure(
    result: LineSearch, moments: CurvatureMoments | None, title: str, unit: str, paths: Sequence[Path]
) -> None:
    """Draw gains and best rates of trial steps against the batch size.

    Args:
        result: The result.
        moments: Moments along the direction of the steps, where curvature was measured.
        title: What was probed.
        unit: What an example is called, in the plural.
        paths: Files to write.
    """
    from rlgns.report.trial_figures import Gains, gains_figure

    half = moments.noise_scale().point if moments else math.nan
    sizes = [float(row.size) for row in result.sizes]
    gain, rate = (moments.largest_gain().point, moments.largest_step().point) if moments else (math.nan, math.nan)
    rates = result.rates and replace(result.rates, largest=result.rates.largest * result.middle)
    known = [row for row in result.sizes if math.isfinite(row.optimum) and math.isfinite(row.optimum_error)]
    panels = [
        Gains(
            "decrease of the loss by the best step",
            sizes,
            [row.gain for row in result.sizes],
            [row.error for row in result.sizes],
            result.gains,
            (half, gain),
        )
    ]
    if known:
        panels.append(
            Gains(
                "rate of the best step",
                [float(row.size) for row in known],
                [row.optimum * result.middle for row in known],
                [row.optimum_error * result.middle for row in known],
                rates,
                (half, rate),
            )
        )
    gains_figure(panels, title=title, unit=unit, paths=paths)
