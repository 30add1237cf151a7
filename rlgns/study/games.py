"""How well do agents play several Atari games, at each batch size?

A game's mean return is normalised by that of random play (0) and of a human (1). Over games, normalised returns are
summed up by their interquartile mean, which neither a game with huge scores nor one that nobody learns can carry, with
an interval by the bootstrap of runs within each game (Agarwal et al. 2021, arXiv:2108.13264).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import bootstrap, trim_mean

from rlgns.runs.goals import RETURNS
from rlgns.runs.records import Record
from rlgns.study.atari_scores import SCORES, human_normalised
from rlgns.study.estimates import finite
from rlgns.study.outcomes import Outcome
from rlgns.study.points import best_points
from rlgns.study.study import Study

EXAMPLES, EPISODES = "progress/examples", "rollout/episodes"

NUM_TIMES = 24
"""Numbers of transitions at which returns are compared."""

NUM_RESAMPLES = 2000

TRIMMED = 0.25
"""Share that the interquartile mean leaves out at either end."""


@dataclass(frozen=True, slots=True)
class GameRow:
    """The goals of one game beside what random play and a human score.

    Attributes:
        study: The study of the game.
        game: The game in ale-py's spelling.
        normalised: The easiest and the last goal as normalised returns.
    """

    study: Study
    game: str
    normalised: tuple[float, float]


@dataclass(frozen=True, slots=True)
class GamesCurve:
    """The interquartile mean of normalised returns over games, at one batch size.

    Attributes:
        algorithm: "A2C" or "PPO".
        batch: Environments and steps of a rollout.
        games: The games.
        runs: Number of runs of each game, all at its best learning rate for the last goal.
        transitions: Numbers of transitions.
        mean: The interquartile mean at each of them.
        low: Lower bound of its interval; NaN where a game has a single run.
        high: Upper bound; NaN where a game has a single run.
    """

    algorithm: str
    batch: tuple[int, int]
    games: tuple[str, ...]
    runs: tuple[int, ...]
    transitions: tuple[float, ...]
    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


def game_rows(studies: Sequence[Study]) -> list[GameRow]:
    """The studies that are of an Atari game with a known human score and whose measure is a return."""
    rows = []
    for study in studies:
        game = _game(study)
        if game:
            first, last = (human_normalised(game, fit.goal) for fit in (study.fits[0], study.fits[-1]))
            rows.append(GameRow(study, game, (first, last)))
    return rows


def games_curves(studies: Sequence[Study], confidence: float = 0.95) -> list[GamesCurve]:
    """Normalised returns over training, of every algorithm and batch size with which two games or more were learnt.

    Args:
        studies: Studies, one for each game and algorithm; others are left out.
        confidence: Nominal coverage of the intervals.
    """
    rows = sorted(game_rows(studies), key=lambda row: _algorithm(row.study))
    curves: list[GamesCurve] = []
    for algorithm, of_algorithm in groupby(rows, key=lambda row: _algorithm(row.study)):
        chosen = list(of_algorithm)
        if len({row.game for row in chosen}) > 1:
            curves += _curves(algorithm, chosen, confidence)
    return curves


def _curves(algorithm: str, rows: Sequence[GameRow], confidence: float) -> list[GamesCurve]:
    points = [
        {point.shape: point.runs for point in best_points(row.study.outcomes, row.study.fits[-1].goal)} for row in rows
    ]
    budgets = [max(run.options.get("total_transitions") or run.examples for run in row.study.outcomes) for row in rows]
    common = sorted(shape for shape in set.intersection(*map(set, points)) if shape)
    curves = []
    for shape in common:
        courses = [[_course(run, row.game) for run in runs[shape]] for row, runs in zip(rows, points, strict=True)]
        times = _times(courses, min(budgets))
        scores = [np.array([_at(course, times) for course in game]).T for game in courses]
        mean, low, high = interquartile_means(scores, confidence)
        curves.append(
            GamesCurve(
                algorithm, shape, tuple(row.game for row in rows), tuple(map(len, courses)),
                tuple(times.tolist()), tuple(mean.tolist()), tuple(low.tolist()), tuple(high.tolist()),
            )
        )  # fmt: skip
    return curves


def interquartile_means(
    scores: Sequence[NDArray[np.float64]], confidence: float = 0.95
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """The interquartile mean over the runs of all games, with its interval by the stratified bootstrap.

    Args:
        scores: For each game an array of shape (times, runs).
        confidence: Nominal coverage of the interval.

    Returns:
        Mean, lower bound and upper bound, each of shape (times,). Bounds are NaN where a game has a single run.
    """
    mean = _interquartile_mean(*scores)
    if min(score.shape[-1] for score in scores) < 2:
        unknown = np.full_like(mean, np.nan)
        return mean, unknown, unknown
    result = bootstrap(
        tuple(scores), _interquartile_mean, vectorized=True, paired=False, axis=-1, n_resamples=NUM_RESAMPLES,
        confidence_level=confidence, method="percentile", rng=np.random.default_rng(0),
    )  # fmt: skip
    interval = result.confidence_interval
    return mean, np.asarray(interval.low), np.asarray(interval.high)


def _interquartile_mean(*scores: NDArray[np.float64], axis: int = -1) -> NDArray[np.float64]:
    return np.asarray(trim_mean(np.concatenate(scores, axis=axis), TRIMMED, axis=axis))


def _course(run: Outcome, game: str) -> NDArray[np.float64]:
    """Transitions and normalised returns of a run, of shape (2, records).

    They begin when the window of the mean return is full: the first games to end are the shortest, and the worst.
    """
    window = run.options.get("episode_window") or 1
    records = [
        (float(record[EXAMPLES]), human_normalised(game, float(record[run.measure])))  # type: ignore[arg-type]
        for record in run.records()
        if _counts(record, run.measure, window)
    ]
    return np.array(records or [(float(run.examples), 0.0)]).T


def _counts(record: Record, measure: str, window: int) -> bool:
    """Whether a record holds a mean return over a whole window of games."""
    episodes = record.get(EPISODES)
    is_full = not isinstance(episodes, int | float) or episodes >= window
    return is_full and None not in (record.get(EXAMPLES), record.get(measure))


def _times(courses: Sequence[Sequence[NDArray[np.float64]]], budget: float) -> NDArray[np.float64]:
    """Transitions from where every run has a return to the budget, in equal ratios."""
    start = max(course[0, 0] for game in courses for course in game)
    return np.geomspace(min(start, budget), budget, NUM_TIMES)


def _at(course: NDArray[np.float64], times: NDArray[np.float64]) -> NDArray[np.float64]:
    """The return of the last record until each time; that of the run's end afterwards."""
    places = np.searchsorted(course[0], times, side="right") - 1
    return np.asarray(course[1][np.maximum(places, 0)])


def _game(study: Study) -> str | None:
    """The study's game, if it is one with a known human score."""
    run = study.outcomes[0]
    game = str(run.options.get("game") or "").lower()
    is_game = run.options.get("env") is None and run.measure in RETURNS and run.options.get("num_steps")
    return game if is_game and game in SCORES else None


def _algorithm(study: Study) -> str:
    return str(study.outcomes[0].options.get("algo") or study.task.split()[0]).upper()


def as_mapping(rows: Sequence[GameRow], curves: Sequence[GamesCurve]) -> dict[str, Any]:
    """Games and curves in plain values for JSON; unknown bounds are None."""
    return {
        "goals": [
            {
                "task": row.study.task,
                "game": row.game,
                "random": SCORES[row.game][0],
                "human": SCORES[row.game][1],
                "normalised_goals": list(row.normalised),
            }
            for row in rows
        ],
        "curves": [
            {
                "algorithm": curve.algorithm,
                "num_envs": curve.batch[0],
                "num_steps": curve.batch[1],
                "games": list(curve.games),
                "runs": list(curve.runs),
                "transitions": list(curve.transitions),
                "interquartile_mean": list(curve.mean),
                "low": [finite(bound) for bound in curve.low],
                "high": [finite(bound) for bound in curve.high],
            }
            for curve in curves
        ],
    }
