"""The result of a probe, as records and as lines for the terminal."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping
from typing import Any

from rlgns.agents.line_search import LineSearch
from rlgns.agents.measuring import LOSSES
from rlgns.agents.probing import ProbeResult
from rlgns.agents.surface import SurfaceResult
from rlgns.noise.scale import NoiseScale
from rlgns.noise.step_fits import GainFit
from rlgns.noise.surface import Cosine
from rlgns.noise.words import in_words

WIDTH = 80
"""Width of the lines in characters."""


def probe_records(result: ProbeResult, checkpoint: str, transitions: int) -> list[dict[str, Any]]:
    """One flat record for each loss, as `probe.jsonl` holds them.

    Args:
        result: The result.
        checkpoint: Name of the checkpoint.
        transitions: Transitions after which it was written.
    """
    records = []
    for loss in LOSSES:
        moments, scale, minibatch = result.moments[loss], result.noise_scale(loss), result.minibatches[loss]
        records.append({
            "probe/checkpoint": checkpoint,
            "progress/transitions": transitions,
            "probe/loss": loss,
            "probe/num_envs": result.num_envs,
            "probe/num_steps": result.num_steps,
            "probe/num_groups": moments.num_groups,
            "probe/num_rollouts": result.num_rollouts,
            "probe/transitions": result.num_transitions,
            "probe/sq_norm": scale.sq_norm,
            "probe/trace_covariance": scale.trace_covariance,
            "probe/noise_scale": scale.point,
            "probe/noise_scale_low": scale.low,
            "probe/noise_scale_high": scale.high,
            "probe/noise_scale_state": scale.state,
            "probe/minibatch_noise_scale": minibatch.point if minibatch else None,
            "probe/minibatch_noise_scale_low": minibatch.low if minibatch else None,
            "probe/minibatch_noise_scale_high": minibatch.high if minibatch else None,
            "time/seconds": result.seconds,
        })  # fmt: skip
    return records


def probe_lines(result: ProbeResult, title: str, transitions: int) -> list[str]:
    """The result as lines of at most 80 columns.

    Args:
        result: The result.
        title: What was probed, for instance "A2C on breakout".
        transitions: Transitions after which the checkpoint was written.
    """
    T = result.num_steps
    lines = _wrapped(
        f"{title} after {transitions:,} transitions, the policy frozen: {result.num_rollouts} rollouts of "
        f"{result.num_envs} × {T}, {result.num_transitions:,} transitions, {result.seconds:.0f} s"
    )
    lines += ["", f"  {'loss':8}{'noise scale in transitions':30}{f'in environments × {T} steps':30}".rstrip()]
    for loss in LOSSES:
        scale = result.noise_scale(loss)
        lines.append(f"  {loss:8}{scale!s:30}{_in_environments(scale, T):30}".rstrip())
    lines += ["", *_wrapped(_meaning(result))]
    minibatch = result.minibatches["total"]
    if minibatch is not None:
        high = in_words(minibatch.high) if minibatch.high < float("inf") else "∞"
        lines += _wrapped(
            f"Given the rollout, the minibatch noise scale of the trained loss is {in_words(minibatch.point)} "
            f"[{in_words(minibatch.low)}, {high}] transitions."
        )
    return lines


def surface_records(result: SurfaceResult, checkpoint: str, transitions: int) -> list[dict[str, Any]]:
    """One flat record for each loss and rollout length, as `probe.jsonl` holds them.

    Args:
        result: The result.
        checkpoint: Name of the checkpoint.
        transitions: Transitions after which it was written.
    """
    records = []
    for row in result.rows:
        scale = row.noise_scale()
        records.append({
            "probe/checkpoint": checkpoint,
            "progress/transitions": transitions,
            "surface/loss": row.loss,
            "surface/num_steps": row.num_steps,
            "surface/num_envs": row.num_envs,
            "surface/num_rollouts": row.moments.count,
            "surface/transitions": result.num_transitions,
            "surface/sq_norm": scale.sq_norm,
            "surface/trace_covariance": scale.trace_covariance,
            "surface/noise_scale": scale.point,
            "surface/noise_scale_low": scale.low,
            "surface/noise_scale_high": scale.high,
            "surface/noise_scale_state": scale.state,
            "surface/cosine": row.cosine.point,
            "surface/cosine_low": row.cosine.low,
            "surface/cosine_high": row.cosine.high,
        })  # fmt: skip
    return records


def surface_lines(result: SurfaceResult, num_envs: int) -> list[str]:
    """The surface as lines of at most 80 columns.

    Args:
        result: The result.
        num_envs: Environments of the run.
    """
    lines = _wrapped(
        f"Environments against rollout length, {result.num_transitions:,} transitions, {result.seconds:.0f} s. "
        f"Progress is that of an update of {num_envs:,} environments relative to infinitely many; the cosine is that "
        "with the gradient of the longest rollout."
    )
    lines += ["", f"  {'loss':6}{'steps':>7}  {'noise scale':23}{'environments':18}{'progress':>8}  cosine"]
    for row in result.rows:
        scale, progress = row.noise_scale(), row.efficiency(num_envs)
        lines.append(
            f"  {row.loss:6}{row.num_steps:7}  {scale!s:23}{_in_environments(scale, row.num_steps):18}"
            f"{'unknown' if math.isnan(progress) else f'{progress:.0%}':>8}  {_cosine_words(row.cosine)}"
        )
    return lines


def _cosine_words(cosine: Cosine) -> str:
    if not (math.isfinite(cosine.point) and math.isfinite(cosine.low)):
        return "unknown"
    return f"{cosine.point:.2f} ± {cosine.high - cosine.point:.2f}"


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
            "trial/learning_rate": row.factor * result.learning_rate,
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
    lines = _wrapped(
        f"Trial steps, judged on {result.num_held_out:,} transitions of other environments, {result.seconds:.0f} s: "
        f"the best decrease of a loss among rates from 1/16 to 16 times the run's {result.learning_rate:.2g}."
    )
    lines += ["", f"  {'loss':8}{'batch':>8}  {'environments':>12}  {'best rate':>11}  decrease"]
    for loss, rows in result.sizes.items():
        for row in rows:
            rate = f"{row.factor * result.learning_rate:.2g}" + ("*" if row.is_at_an_end else " ")
            batch = f"{row.size:8,}  {row.size // result.num_steps:12,}"
            lines.append(f"  {loss:8}{batch}  {rate:>11}  {row.gain:.2g} ± {2 * row.error:.1g}")
    lines.append("")
    if any(row.is_at_an_end for rows in result.sizes.values() for row in rows):
        lines += _wrapped("* The best rate is the smallest or the largest that was tried.")
    for loss, fit in result.fits.items():
        lines += _wrapped(_half_gain(loss, fit))
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


SMALL_P = 0.01
"""p-value below which a fit is called bad."""


def _in_environments(scale: NoiseScale, num_steps: int) -> str:
    parts: Mapping[str, str] = {
        "interval": f"[{in_words(scale.low / num_steps)}, {in_words(scale.high / num_steps)}]",
        "lower bound": f"[{in_words(scale.low / num_steps)}, ∞)",
        "undetermined": "undetermined",
    }
    return parts[scale.state]


def _meaning(result: ProbeResult) -> str:
    """What the noise scale of the trained loss means for the number of environments."""
    scale, T = result.noise_scale(), result.num_steps
    if scale.state == "undetermined":
        return "The trained loss shows no gradient above its noise yet; more transitions would tell more."
    fewest, most = max(1, round(scale.low / T)), scale.high / T
    if scale.state == "lower bound":
        return (
            f"At these parameters, updates of {_count(fewest)} × {T} steps make at most half the progress of an "
            "infinite one, so that more environments pay up to there; an upper bound takes more transitions."
        )
    unmet = "" if result.is_precise else " The wanted precision takes more transitions."
    if most < 1.5:
        return (
            f"At these parameters a single environment × {T} steps makes half the progress of an infinite update or "
            f"more; further environments serve speed and the other losses.{unmet}"
        )
    between = _count(fewest) if fewest == round(most) else f"{fewest:,} to {_count(round(most))}"
    return (
        f"At these parameters noise equals signal in an update of {between} × {T} steps: it makes half the progress of "
        f"an infinite one, and much larger ones make hardly more.{unmet}"
    )


def _count(environments: int) -> str:
    return f"{environments:,} environment{'s' if environments != 1 else ''}"


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH)
