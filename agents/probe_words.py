"""The result of a probe, as records and as lines for the terminal."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping
from typing import Any

from rlgns.agents.measuring import LOSSES
from rlgns.agents.probing import ProbeResult
from rlgns.agents.surface import SurfaceResult
from rlgns.noise.scale import NoiseScale
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
    lines = wrapped(
        f"{title} after {transitions:,} transitions, the policy frozen: {result.num_rollouts} rollouts of "
        f"{result.num_envs} × {T}, {result.num_transitions:,} transitions, {result.seconds:.0f} s"
    )
    lines += ["", f"  {'loss':8}{'noise scale in transitions':30}{f'in environments × {T} steps':30}".rstrip()]
    for loss in LOSSES:
        scale = result.noise_scale(loss)
        lines.append(f"  {loss:8}{scale!s:30}{_in_environments(scale, T):30}".rstrip())
    lines += ["", *wrapped(_meaning(result))]
    minibatch = result.minibatches["total"]
    if minibatch is not None:
        high = in_words(minibatch.high) if minibatch.high < float("inf") else "∞"
        lines += wrapped(
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
    lines = wrapped(
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


def wrapped(text: str) -> list[str]:
    """A text in lines of at most 80 columns."""
    return textwrap.wrap(text, WIDTH)
