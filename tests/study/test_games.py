"""Returns of several Atari games are normalised and summed up over games as Agarwal et al. (2021) do it."""

import json
import math

import numpy as np
import pytest
from support.synthetic_runs import moments_of, write_run

from rlgns.commands.cli import main
from rlgns.study.atari_scores import SCORES, human_normalised
from rlgns.study.games import game_rows, games_curves, interquartile_means
from rlgns.study.outcomes import read_outcomes
from rlgns.study.study import fit_study

GAMES = {"breakout": (1.7, 30.5), "pong": (-20.7, 14.6), "seaquest": (68.4, 42054.7)}


def at_share(game, share):
    random, human = GAMES[game]
    return random + share * (human - random)


def write_game(folder, game, *, shares=(0.1, 0.4), algo="a2c", seeds=2, shapes=((8, 5), (32, 5))):
    """Runs that rise from 0 through two goals, in straight lines, and end there."""
    for num_envs, num_steps in shapes:
        for seed in range(seeds):
            first, last = (at_share(game, share) for share in shares)
            write_run(
                folder / f"{algo}-{game}-{num_envs}-{seed}",
                num_envs=num_envs, num_steps=num_steps, learning_rate=1e-3, seed=seed,
                goals={first: 4000 / num_envs, last: 16_000 / num_envs},
                moments=lambda _share: {"trained": moments_of(300, 400)}, task=f"{algo.upper()} on {game}",
                options={"game": game, "env": None, "frameskip": 4, "algo": algo, "total_transitions": 200_000},
                told={"unit": "transitions"},
            )  # fmt: skip


def studies_of(folder):
    runs = read_outcomes([folder])
    return [fit_study(runs, task=task) for task in sorted({run.task for run in runs})]


def test_random_play_is_0_and_a_human_is_1():
    for game, (random, human) in GAMES.items():
        assert SCORES[game] == (random, human)
        assert human_normalised(game, random) == 0
        assert human_normalised(game, human) == 1
    assert human_normalised("pong", -3.05) == pytest.approx(0.5)


def test_every_game_that_is_played_in_comparisons_has_two_scores():
    ale_py = pytest.importorskip("ale_py.roms")
    assert len(SCORES) == 57
    assert set(SCORES) <= set(ale_py.get_all_rom_ids())
    assert all(random < human for random, human in SCORES.values())


def test_the_interquartile_mean_leaves_out_the_best_and_the_worst_quarter():
    scores = [np.array([[0.0, 1.0, 2.0, 3.0]]), np.array([[4.0, 5.0, 6.0, 1000.0]])]
    mean, low, high = interquartile_means(scores)
    assert mean[0] == 3.5  # of 2, 3, 4 and 5
    assert low[0] < 3.5 < high[0]


def test_the_bootstrap_draws_runs_within_each_game():
    # both runs of each game are alike: games differ by far more, yet the interval has no width
    mean, low, high = interquartile_means([np.full((3, 2), level) for level in (0.0, 1.0, 5.0, 100.0)])
    assert low.tolist() == mean.tolist() == high.tolist() == [3.0] * 3


def test_the_interval_covers_the_mean_of_many_runs():
    generator = np.random.default_rng(0)
    samples = np.array([0.1, 0.3, 0.5, 0.7])[:, None, None] + 0.2 * generator.standard_normal((4, 200, 10))
    mean, low, high = interquartile_means(samples)
    hits = int(((low <= mean.mean()) & (mean.mean() <= high)).sum())
    # 95 % nominally; the percentile bootstrap of ten runs is narrower, and 200 intervals have a standard error of 2 %
    assert 0.85 * 200 <= hits <= 0.99 * 200


def test_one_run_a_game_has_no_interval(tmp_path):
    for game in ("breakout", "pong"):
        write_game(tmp_path, game, seeds=1)
    for curve in games_curves(studies_of(tmp_path)):
        assert np.isnan(curve.low).all()
        assert np.isnan(curve.high).all()
        assert np.isfinite(curve.mean).all()


def test_a_curve_holds_the_mean_over_games_at_equal_transitions(tmp_path):
    write_game(tmp_path, "breakout", shares=(0.1, 0.4))
    write_game(tmp_path, "seaquest", shares=(0.2, 0.8))
    few, many = games_curves(studies_of(tmp_path))
    assert (few.batch, many.batch) == ((8, 5), (32, 5))
    assert few.games == ("breakout", "seaquest")
    assert few.runs == (2, 2)
    assert few.transitions[-1] == 200_000
    assert few.mean[-1] == pytest.approx(0.6)  # a run that has ended keeps its last value
    place = int(np.searchsorted(few.transitions, 20_000))
    assert 0.1 < few.mean[place] < 0.3  # near the first goals, whose mean is 0.15
    assert few.mean == pytest.approx(sorted(few.mean))


def test_algorithms_are_kept_apart_and_one_game_makes_no_curve(tmp_path):
    write_game(tmp_path, "breakout")
    write_game(tmp_path, "pong")
    write_game(tmp_path, "pong", algo="ppo")
    studies = studies_of(tmp_path)
    assert {curve.algorithm for curve in games_curves(studies)} == {"A2C"}
    assert [row.game for row in game_rows(studies)] == ["breakout", "pong", "pong"]


def test_the_page_shows_goals_beside_random_play_and_a_human(tmp_path):
    for game in GAMES:
        write_game(tmp_path / "runs", game)
    assert main(["compare", str(tmp_path / "runs"), f"--out={tmp_path / 'page'}"]) == 0
    page = (tmp_path / "page" / "comparison.html").read_text()
    assert '<td data-label="normalised goals">0.1 … 0.4</td>' in page
    assert '<td data-label="a human">42,054.7</td>' in page
    assert "A2C over 3 games: after 200,000 transitions" in page
    assert page.count("<svg") == 3
    numbers = json.loads((tmp_path / "page" / "comparison.json").read_text())["games"]
    assert [row["game"] for row in numbers["goals"]] == list(GAMES)
    (curve, *_) = numbers["curves"]
    assert curve["interquartile_mean"][-1] == pytest.approx(0.4)
    assert all(math.isfinite(bound) for bound in curve["low"])
