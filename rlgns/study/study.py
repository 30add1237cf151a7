"""What do the runs of a sweep say together? From outcomes to points, fits, noise scales, rows and sentences.

This module joins the others of the package: `points` (the best runs at each batch size), `goal_fits` (B_crit at each
goal), `learning_rates`, `batch_shapes`, `predictions` (B_simple before each goal), `tables`,
`recommendation` and `answer`. All
that is specific to reinforcement learning here is that a batch may have a shape.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rlgns.noise.scale import NoiseScale
from rlgns.runs.arguments import Argument, ArgumentError
from rlgns.runs.goals import format_goal
from rlgns.study.adaptive import AdaptiveFront, adaptive_front, changes_batch
from rlgns.study.adaptive import sentence as adaptive_sentence
from rlgns.study.answer import Answer, answer_of
from rlgns.study.batch_shapes import shape_effect
from rlgns.study.default_batch import DefaultBatch, Defaults, default_batch
from rlgns.study.estimates import Estimate, finite
from rlgns.study.goal_fits import Dimension, GoalFit, fit_goals
from rlgns.study.goal_sentences import goal_sentences
from rlgns.study.learning_rates import LearningRateFit, fit_learning_rate
from rlgns.study.outcomes import Outcome
from rlgns.study.points import Point, best_points, easiest_first, select_task, without_duplicates
from rlgns.study.predictions import Prediction, predict_from_noise
from rlgns.study.recommendation import choose_batch
from rlgns.study.tables import as_table
from rlgns.study.tuned_rates import TunedFit

__all__ = [
    "Answer",
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
    "fit_study",
    "goal_sentences",
    "shape_effect",
]


@dataclass(frozen=True, slots=True)
class Study:
    """Results of the runs of one task.

    Attributes:
        task: What was trained.
        outcomes: The runs that made at least one update, each once.
        fits: Fits of the goals, the easiest goal first (and by the value of the fixed dimension).
        predictions: Noise scales before the goals, by fit and loss, in the runs of the fit's own points.
        rates: By goal, the dependence of the best learning rate on the batch size, where it can be fitted.
        effects: By goal, the effect of more environments with fewer steps, where the shapes can tell.
        shapes: By goal, the best runs at every batch size in every shape.
        warnings: What to know about the runs as a whole.
        default: The batch that the task trains with by default, where it is known.
        fronts: By goal, batches that followed the noise scale beside the fixed ones, where some did.
    """

    task: str
    outcomes: tuple[Outcome, ...]
    fits: tuple[GoalFit, ...]
    predictions: tuple[Prediction, ...]
    rates: dict[float, LearningRateFit]
    effects: dict[float, Estimate]
    shapes: dict[float, tuple[Point, ...]]
    warnings: tuple[str, ...]
    default: DefaultBatch | None = None
    fronts: dict[float, AdaptiveFront] = field(default_factory=dict)

    @property
    def answer(self) -> Answer:
        """Which batch to use, what it costs, and what to know before; or what to run next."""
        return answer_of(self.fits, self.outcomes, default=self.default, effects=self.effects)

    @property
    def sentences(self) -> list[str]:
        """What is known at each goal, in lines of one or two sentences."""
        unit = self.outcomes[0].unit if self.outcomes else "examples"
        fronts = [adaptive_sentence(front, unit) for front in self.fronts.values()]
        return [*goal_sentences(self.fits, self.predictions, self.effects), *fronts]


def fit_study(
    outcomes: Sequence[Outcome],
    by: Dimension = "batch_size",
    *,
    goals: Sequence[float] = (),
    task: str | None = None,
    confidence: float = 0.95,
    defaults: Defaults | None = None,
) -> Study:
    """The study of one task.

    Args:
        outcomes: Runs, of several tasks or one.
        by: What varies along the fitted curves.
        goals: Goals to fit; all goals by default.
        task: Name of the task; it may be left out where all runs are of the same one.
        confidence: Nominal coverage of all intervals.
        defaults: Default options of tasks, with whose batch size the recommended one is compared.

    Raises:
        ValueError: If the runs are of several tasks and none is named, if no run had one of the goals, or if the runs
            had no goals at all.
    """
    of_task = select_task(outcomes, task)
    fixed = [run for run in of_task if not changes_batch(run.options)]
    if not fixed:
        raise ValueError("the batch of every run changes while it trains; add runs with fixed batches to fit")
    runs, duplicates = without_duplicates(fixed)
    fitted = easiest_first(runs, goals or {goal for run in runs for goal in run.goals})
    if not fitted:
        goals_of_runs = Argument.of("goals")
        raise ArgumentError("the runs had no goals; start them with ", goals_of_runs, ", the values to be reached")
    fits = [fit for goal in fitted for fit in fit_goals(runs, by, goal, confidence)]
    rates = {goal: _rate(runs, goal) for goal in fitted}
    effects = {goal: shape_effect(runs, goal, confidence) for goal in fitted}
    fronts = {goal: adaptive_front(of_task, goal, best_points(runs, goal), confidence) for goal in fitted}
    return Study(
        task=of_task[0].task,
        outcomes=tuple(run for run in runs if run.steps > 0),
        fits=tuple(fits),
        predictions=tuple(p for fit in fits for p in predict_from_noise(fit.points, fit.fixed, confidence=confidence)),
        rates={goal: rate for goal, rate in rates.items() if rate},
        effects={goal: effect for goal, effect in effects.items() if effect},
        shapes={goal: tuple(best_points(runs, goal)) for goal in fitted},
        warnings=(*duplicates, *_state_warnings(runs), *_changing(len(of_task) - len(fixed))),
        default=default_batch(fixed[0], defaults or {}),
        fronts={goal: front for goal, front in fronts.items() if front},
    )


def _rate(runs: Sequence[Outcome], goal: float) -> LearningRateFit | None:
    """Fit of the best learning rates, with the exponent by which the runs themselves scaled theirs, if they did."""
    (fit,) = fit_goals(runs, "batch_size", goal)
    exponents = [run.options["lr_batch_exponent"] for run in runs if run.options.get("lr_batch_exponent")]
    return fit_learning_rate(fit.points, float(exponents[0])) if exponents else fit_learning_rate(fit.points)


def _state_warnings(runs: Sequence[Outcome]) -> list[str]:
    """How many runs failed, were stopped, are running or left nothing."""
    count = Counter[str](run.state for run in runs if run.steps > 0)
    num_empty = sum(run.steps == 0 for run in runs)
    words = {
        "failed": "failed (diverged, or crashed)",
        "stopped": f"{'was' if count['stopped'] == 1 else 'were'} stopped (pruned, or by a signal)",
        "running": "still running, or killed",
    }
    warnings = [
        f"{count[state]} of {len(runs)} runs {what}; goals that they did not reach by then count as not reached"
        for state, what in words.items()
        if count[state]
    ]
    return warnings + ([f"{num_empty} of {len(runs)} runs left no update and are left out"] if num_empty else [])


def _changing(count: int) -> list[str]:
    """How many runs stand on no curve, as they have no one batch size."""
    return [f"the batch of {count} more runs changes while they train; no curve goes through them"] if count else []


def as_mapping(study: Study) -> dict[str, Any]:
    """The study in plain values for JSON; what is unbounded or unknown is None."""
    return {
        "task": study.task,
        "num_runs": len(study.outcomes),
        "fits": [_fit_mapping(fit) for fit in study.fits],
        "points": as_table(study.fits),
        "noise_scales": [_prediction_mapping(prediction) for prediction in study.predictions],
        "learning_rates": {format_goal(goal): _rate_mapping(rate) for goal, rate in study.rates.items()},
        "shape_effects": {format_goal(goal): _estimate_mapping(effect) for goal, effect in study.effects.items()},
        **({"adaptive": [_front_mapping(front) for front in study.fronts.values()]} if study.fronts else {}),
        "warnings": list(study.warnings),
        "recommendation": _answer_mapping(study),
        "sentences": study.sentences,
    }


def _answer_mapping(study: Study) -> dict[str, Any]:
    """The recommendation in numbers and in words; its numbers are None where there is no recommendation."""
    answer, choice = study.answer, choose_batch(study.fits, study.default)
    num_envs, num_steps = (choice.point.shape if choice else None) or (None, None)
    return {
        "goal": choice.goal_fit.goal if choice else None,
        "batch_size": choice.point.batch_size if choice else None,
        "num_envs": num_envs,
        "num_steps": num_steps,
        "learning_rate": choice.point.learning_rate if choice else None,
        "certainty": choice.certainty if choice else None,
        "prices": [
            {
                "other": price.other,
                "role": price.role,
                "updates": _estimate_mapping(price.updates),
                "examples": _estimate_mapping(price.examples),
            }
            for price in (choice.prices if choice else ())
        ],
        "command": answer.command,
        "headline": answer.headline,
        "parts": {part.label: list(part.sentences) for part in answer.parts},
    }


def _estimate_mapping(estimate: Estimate | NoiseScale) -> dict[str, Any]:
    numbers = {name: finite(getattr(estimate, name)) for name in ("point", "low", "high")}
    return {**numbers, "state": estimate.state}


def _fit_mapping(goal: GoalFit) -> dict[str, Any]:
    mapping: dict[str, Any] = {"goal": goal.goal, "by": goal.by, "fixed": goal.fixed, "reason": goal.reason}
    if fit := goal.fit:
        names = ("critical_batch_size", "min_steps", "min_examples")
        mapping |= {name: _estimate_mapping(getattr(fit, name)) for name in names}
        mapping |= {
            "level": fit.level,
            "residual_deviation": fit.residual_deviation,
            "degrees_of_freedom": fit.degrees_of_freedom,
            "r_squared": fit.r_squared,
            "lack_of_fit_p_value": fit.lack_of_fit.p_value if fit.lack_of_fit else None,
            "exponent": _estimate_mapping(goal.shape.exponent) if goal.shape else None,
            "exponent_p_value": goal.shape.p_value if goal.shape else None,
            "largest_batch_p_value": goal.shape.largest_p_value if goal.shape else None,
            "misfit": goal.misfit,
            "num_runs": fit.num_runs,
            "num_censored": fit.num_censored,
            "tuned": _tuned_mapping(goal.tuned) if goal.tuned else None,
            "untuned_reason": goal.untuned_reason,
        }
    return {**mapping, "warnings": list(goal.warnings)}


def _tuned_mapping(fit: TunedFit) -> dict[str, Any]:
    return {
        "critical_batch_size": _estimate_mapping(fit.critical_batch_size),
        "min_steps": _estimate_mapping(fit.min_steps),
        "min_examples": _estimate_mapping(fit.min_examples),
        "curvature": fit.curvature,
        "residual_deviation": fit.residual_deviation,
        "num_runs": fit.num_runs,
    }


def _prediction_mapping(prediction: Prediction) -> dict[str, Any]:
    return {
        "goal": prediction.goal,
        "fixed": prediction.fixed,
        "loss": prediction.loss,
        "late": _estimate_mapping(prediction.late) if prediction.late else None,
        "whole": _estimate_mapping(prediction.whole),
        "batch_size": prediction.batch_size,
        "learning_rate": prediction.learning_rate,
        "num_runs": prediction.num_runs,
    }


def _front_mapping(front: AdaptiveFront) -> dict[str, Any]:
    return {
        "goal": front.goal,
        "gain": _estimate_mapping(front.fit.gain) if front.fit else None,
        "predicted_gain": _estimate_mapping(front.predicted) if front.predicted else None,
        "min_steps": front.fit.min_steps if front.fit else None,
        "min_examples": front.fit.min_examples if front.fit else None,
        "points": [
            {
                "ratio": point.ratio,
                "learning_rate": point.learning_rate,
                "steps": list(point.steps),
                "examples": list(point.examples),
                "mean_batch_size": point.mean_batch_size,
            }
            for point in front.points
        ],
    }


def _rate_mapping(rate: LearningRateFit) -> dict[str, Any]:
    return {
        "learning_rate": _estimate_mapping(rate.learning_rate),
        "batch_scale": _estimate_mapping(rate.batch_scale),
        "exponent": rate.exponent,
    }
