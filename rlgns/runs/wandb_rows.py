"""How records appear in W&B: which keys have a panel and a place in the summary, and how runs of W&B become records.

A run has some two hundred record keys, most of them moments from which noise scales can be computed anew. All are in
the rows of the run. Panels and summary are for people: they have returns, losses, progress, speed, and the noise scales
with their bounds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from rlgns.runs.records import plain

DETAIL = re.compile(r"(noise|environments)/|progress/optimizer_steps$|train/(n_updates|batch_size|clip_range)$")
"""Keys without a panel and without a place in the summary, but for `HEADLINES`."""

HEADLINES = re.compile(r"noise/(policy|value|total|trained)/(late/)?noise_scale(_low|_high)?$")
"""The noise scales over the last window and, at the end, over the second half of the run, with their bounds."""


def is_detail(key: str) -> bool:
    """Whether a record key is left out of W&B's panels and summary.

    >>> [is_detail(key) for key in ("noise/policy/noise_scale_low", "noise/policy/sq_norm", "rollout/episode_return")]
    [False, True, False]
    """
    return bool(DETAIL.match(key)) and not HEADLINES.match(key)


def present(record: Mapping[str, object]) -> dict[str, Any]:
    """The values of a record that are not None."""
    return {key: value for key, value in plain(record).items() if value is not None}


def artifact_name(text: str) -> str:
    """The text as a name that W&B allows for an artifact.

    >>> artifact_name("probe of a run/1")
    'probe-of-a-run-1'
    """
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", text)[:120]


def plain_run(run: Any) -> dict[str, Any]:
    """A run of W&B's public API in plain values (`rlgns.runs.wandb_sink.sweep_runs`)."""
    rows = run.scan_history(use_cache=False) if run.lastHistoryStep >= 0 else ()  # wandb fails on a run without rows
    return {
        "name": run.id,
        "state": run.state,
        "config": _without_wandb_keys(run.config),
        "summary": _without_wandb_keys(dict(run.summary)),
        "history": [_without_wandb_keys(row) for row in rows],
    }


def _without_wandb_keys(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values that a run logged, without the keys that W&B adds (_step, _timestamp, …)."""
    return {key: value for key, value in values.items() if not key.startswith("_")}
