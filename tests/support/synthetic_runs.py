"""Run directories as a training writes them, from a formula: a sweep whose critical batch size is known.

    write_sweep(folder, min_steps=200, critical_batch_size=640)
    rlgns fit folder

The return rises with log(steps); steps to a goal follow S = S_min (1 + B_crit/B)·(1 + log2(ε/ε_best)²/4)·noise.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rlgns.noise.history import History
from rlgns.noise.moment_records import Measurement, record_of
from rlgns.noise.moments import GradientMoments
from rlgns.runs.files import write_json
from rlgns.runs.goals import GoalCost, goal_record
from rlgns.runs.records import RecordWriter
from rlgns.runs.summary_numbers import summary_numbers

LOSSES = ("policy", "value", "total", "trained")

Moments = Callable[[float], Measurement]
"""What is measured at a share of the run, 0 to 1."""

SECONDS_PER_UPDATE, SECONDS_PER_EXAMPLE = 0.01, 1e-4


def steps_to_goal(batch_size: float, *, min_steps: float, critical_batch_size: float) -> float:
    """S = S_min (1 + B_crit/B)."""
    return min_steps * (1 + critical_batch_size / batch_size)


def moments_of(noise_scale: float, batch_size: float, *, num_groups: int = 8, error: float = 0.05) -> GradientMoments:
    """|G|² = 1 and tr Σ = noise_scale without scatter; `error` is the jackknife's of |G|², relative."""
    b, B = batch_size / num_groups, batch_size
    variances = error**2, (error * noise_scale) ** 2, 0.0
    return GradientMoments(1 + noise_scale / b, 1 + noise_scale / B, b, B, num_groups, *variances)


def growing_moments(noise_scale: float, batch_size: float) -> Moments:
    """A noise scale that grows threefold over a run and ends at the given one; the value loss's a tenth of it."""

    def at(share: float) -> Measurement:
        now = noise_scale * 3 ** (share - 1)
        by_loss = {loss: now / 10 if loss == "value" else now for loss in LOSSES}
        measured = {loss: moments_of(scale, batch_size) for loss, scale in by_loss.items()}
        return {**measured, "value/by_transition": moments_of(by_loss["value"] / 4, batch_size)}

    return at


def write_run(
    folder: Path,
    *,
    num_envs: int | None,
    num_steps: int | None,
    learning_rate: float,
    seed: int = 0,
    goals: Mapping[float, float | None],
    batch_size: int | None = None,
    moments: Moments | None = None,
    task: str = "A2C on breakout",
    budget: int | None = None,
    exit_code: int | None = 0,
    num_records: int = 40,
    options: Mapping[str, Any] | None = None,
    told: Mapping[str, Any] | None = None,
) -> Path:
    """Write config.json, metrics.jsonl and (unless exit_code is None: still running) summary.json.

    num_envs, num_steps  None where examples have no shape; `batch_size` is B then
    goals                steps to each level; None: not reached
    moments              of each record; none are measured by default
    options, told        further keys of the configuration: what the run was told, and what follows
    budget               updates that the run makes at most; by default it ends at its last goal
    """
    B = batch_size or (num_envs or 0) * (num_steps or 0)
    shape = {"batch_size": B} if num_envs is None else {"num_envs": num_envs, "num_steps": num_steps}
    own = {**shape, "learning_rate": learning_rate, "seed": seed, "goals": sorted(goals), "out": str(folder)}
    folder.mkdir(parents=True)
    config = {"task": task, "batch_size": B, "effective_learning_rate": learning_rate, "wandb_run_id": folder.name}
    write_json(folder / "config.json", {"options": own | dict(options or {}), **config, **(told or {})})
    steps_to = {level: None if steps is None else max(1, round(steps)) for level, steps in goals.items()}
    last = budget or max((steps for steps in steps_to.values() if steps), default=1000)
    updates = sorted({*np.linspace(1, last, num_records).round().astype(int).tolist(), *_within(steps_to, last)})
    history = History()
    with RecordWriter(folder / "metrics.jsonl") as writer:
        for update in updates:
            measured = _return(update, steps_to)
            measure = (told or {}).get("goal_measure", "rollout/episode_return")
            if measure != "rollout/episode_return":  # a loss, which falls
                measured = 2 * max(goals, default=1.0) - measured
            record = progress(update, B) | {measure: measured}
            for level, steps in steps_to.items():
                if steps == update:
                    record |= goal_record(level, _reached(update, B))
            if moments:
                history.measurements.append(moments(update / last))
                record |= record_of(history.measurements[-1])
            writer.write(record)
    if exit_code is not None:
        reached = {g: _reached(s, B) if s and s <= last else None for g, s in steps_to.items()}
        summary = progress(last, B) | {"exit_code": exit_code}
        for level, price in reached.items():
            summary |= goal_record(level, price)
        if moments:
            summary |= summary_numbers(history, [x for x in LOSSES if history.moments(x)], B)
        write_json(folder / "summary.json", summary)
    return folder


def write_sweep(
    folder: Path,
    *,
    shapes: Sequence[tuple[int, int]] = ((4, 10), (16, 10), (64, 10), (256, 10), (1024, 10)),
    rates: Sequence[float] = (0.25, 0.5, 1, 2, 4),
    seeds: int = 3,
    min_steps: float = 200,
    critical_batch_size: float = 640,
    levels: Mapping[float, float] | None = None,
    noise: float = 0.1,
    budget: int | None = None,
    noise_scale: float | None = 900,
    shape_effect: float = 1.0,
    task: str = "A2C on breakout",
    generator: np.random.Generator | None = None,
) -> list[Path]:
    """A run for every shape, rate and seed, with known B_crit and S_min at the last level.

    rates         as multiples of the best, which is 7e-4 (1 + B*/B)^(−½) with B* = B_crit
    levels        goals, each with the multiple of min_steps (and of B_crit) that it takes; 5 and 20 by default
    noise         standard deviation of log S
    budget        examples a run may consume; goals beyond it are not reached
    noise_scale   B_simple at the end of each run; None: not measured
    shape_effect  factor of S if the environments double and the steps of a rollout halve at the same batch size
    """
    generator = generator or np.random.default_rng(0)
    levels = levels or {5.0: 0.25, 20.0: 1.0}
    folders = []
    for num_envs, num_steps in shapes:
        B = num_envs * num_steps
        best = 7e-4 * (1 + critical_batch_size / B) ** -0.5
        longer = shape_effect ** (math.log2(num_envs / num_steps) / 2)
        for multiple in rates:
            for seed in range(seeds):
                luck = longer * (1 + math.log2(multiple) ** 2 / 4) * math.exp(noise * generator.standard_normal())
                goals: dict[float, float | None] = {}
                for level, share in levels.items():
                    law = {"min_steps": min_steps * share, "critical_batch_size": critical_batch_size * share}
                    steps = luck * steps_to_goal(B, **law)
                    goals[level] = None if budget and steps * B > budget else steps
                name = f"{num_envs}x{num_steps}-lr{multiple:g}-seed{seed}"
                folders.append(
                    write_run(
                        folder / name,
                        num_envs=num_envs,
                        num_steps=num_steps,
                        learning_rate=best * multiple,
                        seed=seed,
                        goals=goals,
                        moments=growing_moments(noise_scale, B) if noise_scale else None,
                        budget=budget // B if budget and None in goals.values() else None,
                        task=task,
                    )
                )
    return folders


def progress(update: int, batch_size: int) -> dict[str, Any]:
    """The counters of a record."""
    examples = update * batch_size
    return {
        "progress/steps": update,
        "progress/optimizer_steps": update,
        "progress/transitions": examples,
        "progress/examples": examples,
        "time/seconds": update * SECONDS_PER_UPDATE + examples * SECONDS_PER_EXAMPLE,
        "time/transitions_per_second": batch_size / (SECONDS_PER_UPDATE + batch_size * SECONDS_PER_EXAMPLE),
    }


def _within(steps_to: Mapping[float, int | None], last: int) -> list[int]:
    return [steps for steps in steps_to.values() if steps and steps <= last]


def _reached(update: int, batch_size: int) -> GoalCost:
    now = progress(update, batch_size)
    return GoalCost(update, update, now["progress/examples"], now["time/seconds"])


def _return(update: int, steps_to: Mapping[float, int | None]) -> float | None:
    """Rises through each level when it is reached, in straight lines; stays below a level that is not."""
    known = sorted((steps, level) for level, steps in steps_to.items() if steps)
    if not known:
        return 0.0
    return float(np.interp(update, [0, *(s for s, _ in known)], [0, *(level for _, level in known)]))


def damage(run: Path, name: str = "config.json") -> None:
    """Cut a file of a run in half, as a full disk does."""
    content = (run / name).read_text()
    (run / name).write_text(content[: len(content) // 2])


def config_of(run: Path) -> dict[str, Any]:
    """The run's config.json."""
    return json.loads((run / "config.json").read_text())
