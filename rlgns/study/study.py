"""What do the runs of a sweep say together? From outcomes to points, fits, predictions, rows and words.

The door to the modules that do it: `points` (the best run at each batch size), `goal_fits` (B_crit by goal),
`predictions` (B_simple by goal), `advice` (rows and words). Nothing here knows of reinforcement learning but that a
batch may have a shape.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rlgns.noise.scale import NoiseScale
from rlgns.runs.arguments import Argument, ArgumentError
from rlgns.runs.goals import level_in_words
from rlgns.study.advice import as_table, finite, recommendation
from rlgns.study.fits import Estimate
from rlgns.study.goal_fits import Dimension, GoalFit, LearningRateFit, fit_goals, fit_learning_rate, shape_effect
from rlgns.study.outcomes import Outcome
from rlgns.study.points import Point, best_points, by_difficulty, of_one_task, without_duplicates
from rlgns.study.predictions import Prediction, predictions_of

__all__ = [
    "Dimension",
    "GoalFit",
    "LearningRateFit",
    "Point",
    "Prediction",
    "Study",
    "as_mapping",
    "as_table",
    "fit_goals",
    "fit_learning_rate",
    "noise_scales",
    "recommendation",
    "shape_effect",
    "study_of",
]


@dataclass(frozen=True, slots=True)
class Study:
    """Everything that the runs of one task say.

    outcomes     the runs, each once
    fits         by goal, the easiest first (and by what is held fixed)
    predictions  noise scales by fit and loss, of the fit's own points
    rates        by goal, the best learning rates' dependence on the batch size, where it can be fitted
    effects      by goal, environments against steps, where shapes allow to tell
    shapes       by goal, the best run of every batch size in every shape
    warnings     about the runs as a whole
    """

    task: str
    outcomes: tuple[Outcome, ...]
    fits: tuple[GoalFit, ...]
    predictions: tuple[Prediction, ...]
    rates: dict[float, LearningRateFit]
    effects: dict[float, Estimate]
    shapes: dict[float, tuple[Point, ...]]
    warnings: tuple[str, ...]

    @property
    def recommendation(self) -> list[str]:
        """In words, a line each."""
        return recommendation(self.fits, self.predictions, self.effects)


def study_of(
    outcomes: Sequence[Outcome],
    by: Dimension = "batch_size",
    *,
    levels: Sequence[float] = (),
    task: str | None = None,
    confidence: float = 0.95,
) -> Study:
    """The study of one task.

    by          what the fits are against
    levels      of goals; all by default
    confidence  nominal coverage of all intervals

    Raises ValueError on runs of several tasks unless one is named, goals that no run had, no goals at all.
    """
    of_task = of_one_task(outcomes, task)
    runs, duplicates = without_duplicates(of_task)
    started = [run for run in runs if run.steps > 0]
    goals = by_difficulty(runs, levels or {goal for run in runs for goal in run.goals})
    if not goals:
        goals_of_runs = Argument.of("goals")
        raise ArgumentError("the runs had no goals; start them with ", goals_of_runs, ", the levels to be reached")
    fits = [fit for goal in goals for fit in fit_goals(runs, by, goal, confidence)]
    rates, effects = {}, {}
    for goal in goals:
        if rate := _rate(runs, goal):
            rates[goal] = rate
        if effect := shape_effect(runs, goal, confidence):
            effects[goal] = effect
    return Study(
        task=of_task[0].task,
        outcomes=tuple(started),
        fits=tuple(fits),
        predictions=tuple(one for fit in fits for one in predictions_of(fit.points, fit.fixed, confidence=confidence)),
        rates=rates,
        effects=effects,
        shapes={goal: tuple(best_points(runs, goal)) for goal in goals},
        warnings=(*duplicates, *_state_warnings(runs)),
    )


def noise_scales(
    outcomes: Sequence[Outcome], levels: Sequence[float] = (), confidence: float = 0.95
) -> list[Prediction]:
    """What the noise scale predicts at each goal (all by default), by loss; see `predictions`."""
    goals = levels or sorted({goal for run in outcomes for goal in run.goals})
    by_batch_size = [fit for goal in goals for fit in fit_goals(outcomes, "batch_size", goal, confidence)]
    return [one for fit in by_batch_size for one in predictions_of(fit.points, None, confidence)]


def _rate(runs: Sequence[Outcome], goal: float) -> LearningRateFit | None:
    (fit,) = fit_goals(runs, "batch_size", goal)
    exponents = [run.options["lr_batch_exponent"] for run in runs if run.options.get("lr_batch_exponent")]
    return fit_learning_rate(fit.points, float(exponents[0])) if exponents else fit_learning_rate(fit.points)


def _state_warnings(runs: Sequence[Outcome]) -> list[str]:
    """What the runs as a whole suffered from."""
    count = Counter[str](run.state for run in runs if run.steps > 0)
    unborn = sum(run.steps == 0 for run in runs)
    words = {
        "failed": "failed (diverged, or crashed)",
        "stopped": "were stopped (pruned, or by a signal)",
        "running": "are still running, or were killed",
    }
    said = [
        f"{count[state]} of {len(runs)} runs {what}; goals that they did not reach by then count as not reached"
        for state, what in words.items()
        if count[state]
    ]
    return said + ([f"{unborn} of {len(runs)} runs left no update and are left out"] if unborn else [])


def as_mapping(study: Study) -> dict[str, Any]:
    """The study in plain values for JSON; what is unbounded or unknown is None."""
    return {
        "task": study.task,
        "num_runs": len(study.outcomes),
        "fits": [_fit_mapping(fit) for fit in study.fits],
        "points": as_table(study.fits),
        "noise_scales": [_prediction_mapping(one) for one in study.predictions],
        "learning_rates": {level_in_words(goal): _rate_mapping(rate) for goal, rate in study.rates.items()},
        "shape_effects": {level_in_words(goal): _estimate(effect) for goal, effect in study.effects.items()},
        "warnings": list(study.warnings),
        "recommendation": study.recommendation,
    }


def _estimate(estimate: Estimate | NoiseScale) -> dict[str, Any]:
    numbers = {name: finite(getattr(estimate, name)) for name in ("point", "low", "high")}
    return {**numbers, "state": estimate.state}


def _fit_mapping(goal: GoalFit) -> dict[str, Any]:
    found: dict[str, Any] = {"goal": goal.level, "by": goal.by, "fixed": goal.fixed, "reason": goal.reason}
    if fit := goal.fit:
        names = ("critical_batch_size", "min_steps", "min_examples")
        found |= {name: _estimate(getattr(fit, name)) for name in names}
        found |= {
            "level": fit.level,
            "residual_deviation": fit.residual_deviation,
            "degrees_of_freedom": fit.degrees_of_freedom,
            "r_squared": fit.r_squared,
            "lack_of_fit_p_value": fit.lack_of_fit.p_value if fit.lack_of_fit else None,
            "num_runs": fit.num_runs,
            "num_censored": fit.num_censored,
        }
    return {**found, "warnings": list(goal.warnings)}


def _prediction_mapping(one: Prediction) -> dict[str, Any]:
    return {
        "goal": one.level,
        "fixed": one.fixed,
        "loss": one.loss,
        "late": _estimate(one.late),
        "whole": _estimate(one.whole),
        "batch_size": one.batch_size,
        "learning_rate": one.learning_rate,
        "num_runs": one.num_runs,
    }


def _rate_mapping(rate: LearningRateFit) -> dict[str, Any]:
    return {
        "learning_rate": _estimate(rate.learning_rate),
        "batch_scale": _estimate(rate.batch_scale),
        "exponent": rate.exponent,
    }
