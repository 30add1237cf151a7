"""Evaluations of a run: their numbers, their schedule, and that training does not notice them."""

import json
import math
import os
import random
import signal
from dataclasses import replace

import gymnasium
import numpy as np
import pytest
import stable_baselines3
import torch
from stable_baselines3.common.vec_env import VecMonitor
from support.environments import PowerCutError, RandomWalks, SavedRandomWalks
from support.whole_runs import run, wait_until
from test_checkpoints import assert_same_state, without_clock
from test_ranks_of_runs import run_step, start_step

import rlgns.agents.evaluating
import rlgns.agents.task
from rlgns.agents.cli import main as train
from rlgns.agents.config import TrainConfig, resolved
from rlgns.agents.environments import make_environments
from rlgns.agents.evaluating import SEED_KEY, Evaluation, Evaluator, own_random_numbers
from rlgns.agents.models import make_model
from rlgns.agents.options import parse
from rlgns.commands.cli import main
from rlgns.runs.checkpoints import load_checkpoint
from rlgns.runs.records import EVALUATED_RETURN, read_records
from rlgns.runs.stopping import StopRequest
from rlgns.study.outcomes import read_outcome

QUIET = ("--wandb", "disabled", "--num-torch-threads", "1")
CARTPOLE = ("--env", "CartPole-v1", "--num-envs", "4", "--num-steps", "8")


class Keeper:
    """A run without directory, which nobody stops."""

    stop = StopRequest()

    def stop_requested(self) -> bool:
        return False


def evaluations(run_dir) -> list[dict]:
    records = [record for record in read_records(run_dir / "metrics.jsonl") if EVALUATED_RETURN in record]
    return [{k: v for k, v in record.items() if k.startswith(("eval/", "progress/"))} for record in records]


def without_seconds(records: list[dict]) -> list[dict]:
    return [{key: value for key, value in record.items() if "seconds" not in key} for record in records]


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluated") / "run"
    flags = (*CARTPOLE, "--total-transitions", "2500", "--eval-every", "1000", "--eval-episodes", "3", *QUIET)
    assert train([*flags, "--seed", "5", "--out", str(folder)]) == 0
    return folder


# --- numbers ----------------------------------------------------------------------------------------------------------


def test_evaluations_come_at_every_interval_and_at_the_end(evaluated):
    records = evaluations(evaluated)
    assert [record["progress/transitions"] for record in records] == [1024, 2016, 2528]  # updates of 32 transitions
    assert [record["eval/transitions"] for record in records] == [1024, 2016, 2528]
    assert [record["eval/episodes"] for record in records] == [3, 3, 3]


def test_the_last_evaluation_is_what_stock_stable_baselines3_scores_with_the_exported_policy(evaluated, tmp_path):
    file = tmp_path / "model.zip"
    assert main(["export", str(evaluated), str(file)]) == 0
    model = stable_baselines3.A2C.load(file, device="cpu")
    seed = int(np.random.SeedSequence([5, SEED_KEY, 2528]).generate_state(1)[0] % 2**30)
    returns = []
    for i in range(3):
        environment = gymnasium.make("CartPole-v1")
        observation, _ = environment.reset(seed=seed + i)
        total, done = 0.0, False
        while not done:
            action, _ = model.predict(observation, deterministic=True)
            observation, reward, terminated, truncated, _ = environment.step(int(action))
            total, done = total + float(reward), terminated or truncated
        returns.append(total)
    last = evaluations(evaluated)[-1]
    assert sorted(load_checkpoint(evaluated / "checkpoint.pt")["evaluation"]["latest"]["returns"]) == sorted(returns)
    assert last[EVALUATED_RETURN] == np.mean(returns)
    reach = 4.302653 * np.std(returns, ddof=1) / math.sqrt(3)  # t of 2 degrees of freedom at 97.5 %
    assert last[f"{EVALUATED_RETURN}_low"] == pytest.approx(np.mean(returns) - reach)
    assert last[f"{EVALUATED_RETURN}_high"] == pytest.approx(np.mean(returns) + reach)


def test_a_single_game_has_no_interval():
    record = Evaluation(100, [7.0], [50], 1.0).record()
    assert (record[EVALUATED_RETURN], record[f"{EVALUATED_RETURN}_low"], record["eval/episodes"]) == (7.0, None, 1)


def test_atari_games_are_whole_and_their_points_unclipped():
    """Ms. Pac-Man has three lives and gives 10 points and more at a time."""
    config = resolved(TrainConfig(game="ms_pacman", num_envs=2, eval_every=10, eval_episodes=2))
    environments = make_environments(config, 0)
    policy = make_model(config, environments, "cpu").policy
    environments.close()
    results = []
    for changes in ({}, {"episodic_life": False, "reward_clipping": False}):
        evaluator = Evaluator(replace(config, **changes))
        results.append(evaluator.evaluate(policy, 10, Keeper()))
        evaluator.close()
    assert results[0].returns == results[1].returns
    assert results[0].lengths == results[1].lengths
    assert min(results[0].returns) >= 60
    assert all(value % 10 == 0 for value in results[0].returns)


# --- the return of record ---------------------------------------------------------------------------------------------


def test_summary_outcome_words_and_figure_are_about_the_evaluation(evaluated, capsys):
    last = evaluations(evaluated)[-1]
    summary = json.loads((evaluated / "summary.json").read_text())
    assert summary.items() >= {key: value for key, value in last.items() if key.startswith("eval/")}.items()
    best = max(record[EVALUATED_RETURN] for record in evaluations(evaluated))
    assert summary["eval/best_episode_return"] == best
    assert read_outcome(evaluated).measure == EVALUATED_RETURN
    assert main(["show", str(evaluated)]) == 0
    words = capsys.readouterr().out
    assert f"evaluated return {last[EVALUATED_RETURN]:.1f} after 2,528 transitions" in words
    assert f"best evaluation: {best:,.1f} after {summary['eval/best_transitions']:,} transitions  (best.pt)" in words
    assert "evaluated return" in (evaluated / "noise_scale.svg").read_text()


def test_goals_are_reached_by_evaluations_and_the_last_ends_the_run(tmp_path):
    out = tmp_path / "run"
    flags = (*CARTPOLE, "--total-transitions", "100000", "--eval-every", "1000", "--eval-episodes", "2", *QUIET)
    assert train([*flags, "--goals", "2", "15", "--episode-window", "1", "--out", str(out)]) == 0
    summary, records = json.loads((out / "summary.json").read_text()), evaluations(out)
    for goal in (2, 15):
        first = next(record for record in records if record[EVALUATED_RETURN] >= goal)
        assert summary[f"goal/{goal}/examples_to_goal"] == first["progress/transitions"]
        # the fit dates it by interpolation between that evaluation and the one before
        assert first["progress/transitions"] - 1024 <= read_outcome(out).goals[goal].examples
        assert read_outcome(out).goals[goal].examples <= first["progress/transitions"]
    assert records[-1]["progress/transitions"] == summary["goal/15/examples_to_goal"] < 100_000


def test_best_pt_holds_the_policy_of_the_best_evaluation_and_is_probed_and_exported(tmp_path, capsys, monkeypatch):
    out = tmp_path / "run"
    scores = iter([3.0, 9.0, 4.0, 9.0])
    played = rlgns.agents.evaluating.games
    monkeypatch.setattr(  # a learner cannot be made to forget on demand: its games are real, their scores are not
        rlgns.agents.evaluating, "games", lambda *arguments: ([next(scores)] * 2, played(*arguments)[1])
    )
    flags = (*CARTPOLE, "--total-transitions", "1280", "--eval-every", "320", "--eval-episodes", "2", *QUIET)
    assert train([*flags, "--keep-checkpoints", "2", "--out", str(out)]) == 0
    best = load_checkpoint(out / "best.pt")
    assert best["num_updates"] == 20  # the first of the two with 9 points
    kept = load_checkpoint(out / "checkpoints" / "640.pt")
    assert all(torch.equal(best["policy"][name], kept["policy"][name]) for name in kept["policy"])
    assert main(["export", str(out), str(tmp_path / "best.zip"), "--checkpoint", "best"]) == 0
    assert stable_baselines3.A2C.load(tmp_path / "best.zip", device="cpu").num_timesteps == 640
    probing = ["probe", str(out), "--checkpoint", "best", "--num-envs", "4", "--max-transitions", "500"]
    assert main(probing) == 0
    assert "after 640 transitions" in capsys.readouterr().out


def test_a_run_without_evaluations_has_no_best_checkpoint_and_says_so(tmp_path, capsys):
    out = tmp_path / "run"
    assert train([*CARTPOLE, "--total-transitions", "64", *QUIET, "--out", str(out)]) == 0
    capsys.readouterr()
    assert main(["export", str(out), str(tmp_path / "best.zip"), "--checkpoint", "best"]) == 2
    assert "has no best.pt: it was not evaluated" in capsys.readouterr().err
    assert not any(key.startswith("eval/") for key in read_records(out / "metrics.jsonl")[-1])


# --- training does not notice -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("algo", ["a2c", "ppo"])
def test_a_run_is_bitwise_the_same_with_and_without_evaluations(algo, tmp_path):
    flags = (*CARTPOLE, "--algo", algo, "--total-transitions", "640", *QUIET)
    assert train([*flags, "--out", str(tmp_path / "without")]) == 0
    drawn = ("--eval-every", "100", "--eval-episodes", "2", "--eval-deterministic", "False")
    assert train([*flags, *drawn, "--out", str(tmp_path / "with")]) == 0
    evaluated, plain = (without_clock(load_checkpoint(tmp_path / f / "checkpoint.pt")) for f in ("with", "without"))
    assert evaluated.pop("evaluation")["latest"]
    for state in (evaluated, plain):
        for episode in state["counters"]["finished"]:
            episode.pop("t")
    assert_same_state(evaluated, plain)


def test_generators_go_on_as_if_the_block_had_not_been():
    draws = []
    for with_block in (True, False):
        random.seed(1), np.random.seed(1), torch.manual_seed(1)  # noqa: NPY002 -- what SB3 draws from
        if with_block:
            with own_random_numbers(7):
                inside = random.random(), np.random.random(), float(torch.rand(()))  # noqa: NPY002
        draws.append((random.random(), np.random.random(), float(torch.rand(()))))  # noqa: NPY002
    assert draws[0] == draws[1]
    with own_random_numbers(7):
        assert inside == (random.random(), np.random.random(), float(torch.rand(())))  # noqa: NPY002


# --- stopped and continued --------------------------------------------------------------------------------------------


@pytest.fixture
def walks(monkeypatch):
    """Trains and evaluates on random walks; `made` lists the environments, `made_next` the options of the next ones."""
    made_next = {"training": {}, "evaluation": {}}

    def make(config, seed):
        return SavedRandomWalks(config.num_envs, seed, **made_next["training"])

    def make_evaluated(config, seed):
        return VecMonitor(RandomWalks(config.num_envs, seed, **made_next["evaluation"]))

    monkeypatch.setattr(rlgns.agents.task, "make_environments", make)
    monkeypatch.setattr(rlgns.agents.evaluating, "make_environments", make_evaluated)
    return made_next


def config_of(out):
    return resolved(
        TrainConfig(
            env="RandomWalks", num_envs=4, num_steps=5, total_transitions=240, eval_every=60, eval_episodes=2,
            wandb="disabled", out=out, checkpoint_seconds=1e-9, seed=7, device="cpu",
        )
    )  # fmt: skip


def assert_alike(one, other):
    states = [without_clock(load_checkpoint(path / "checkpoint.pt")) for path in (one, other)]
    for state in states:
        for name in ("latest", "best"):
            state["evaluation"][name].pop("seconds")
    assert_same_state(*states)
    assert without_seconds(evaluations(one)) == without_seconds(evaluations(other))
    assert load_checkpoint(one / "best.pt")["num_updates"] == load_checkpoint(other / "best.pt")["num_updates"]


@pytest.mark.parametrize("num_updates", [2, 3, 7])
def test_a_run_resumed_after_a_power_cut_is_evaluated_as_one_that_was_not_cut(num_updates, walks, tmp_path):
    assert rlgns.agents.task.run(config_of(tmp_path / "whole")) == 0
    walks["training"] = {"power_cut_after": num_updates * 5 + 2}
    with pytest.raises(PowerCutError):
        rlgns.agents.task.run(config_of(tmp_path / "cut"))
    walks["training"] = {}
    assert rlgns.agents.task.run(parse(["--resume", str(tmp_path / "cut")])) == 0
    assert [record["progress/transitions"] for record in evaluations(tmp_path / "cut")] == [60, 120, 180, 240]
    assert_alike(tmp_path / "cut", tmp_path / "whole")


@pytest.mark.parametrize("number", [1, 2, 4])
def test_a_signal_in_the_middle_of_an_evaluation_ends_the_run_and_the_next_one_makes_up_for_it(
    number, walks, tmp_path, capsys
):
    walks["evaluation"] = {"sigterm_at": _steps_before_evaluations(tmp_path / "whole")[number - 1] + 1}
    out = tmp_path / "stopped"
    assert rlgns.agents.task.run(config_of(out)) == 128 + signal.SIGTERM
    assert len(evaluations(out)) == number - 1
    assert json.loads((out / "summary.json").read_text())["exit_code"] == 143
    assert "continue with --resume" in capsys.readouterr().out
    walks["evaluation"] = {}
    assert rlgns.agents.task.run(parse(["--resume", str(out)])) == 0
    whole, resumed = (without_seconds(evaluations(folder)) for folder in (tmp_path / "whole", out))
    assert resumed[:number] == whole[:number]  # then the environments of training have started fresh episodes
    assert [record["eval/transitions"] for record in resumed] == [60, 120, 180, 240]


def _steps_before_evaluations(out) -> list[int]:
    """Steps that the environments of evaluations have made before each evaluation of a run."""
    steps, environments = [], []
    make = rlgns.agents.evaluating.make_environments

    def counted(config, seed):
        environments.append(make(config, seed))
        reset = environments[-1].reset
        environments[-1].reset = lambda: (steps.append(environments[-1].venv.num_steps), reset())[1]
        return environments[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rlgns.agents.evaluating, "make_environments", counted)
        assert rlgns.agents.task.run(config_of(out)) == 0
    return steps


# --- several ranks ----------------------------------------------------------------------------------------------------

RANKS = ("--env", "CartPole-v1", "--num-envs", "8", "--num-steps", "8", "--eval-every", "256", "--eval-episodes", "2")


@pytest.mark.slow
def test_two_ranks_evaluate_once_and_reach_goals_together(tmp_path):
    flags = (*RANKS, "--goals", "5", "--total-transitions", "2048", *QUIET)
    ended = run_step(tmp_path, *flags, "--out", str(tmp_path / "run"))
    assert [one.exit_code for one in ended] == [0, 0], ended[0].err
    records = evaluations(tmp_path / "run")
    assert [record["progress/transitions"] for record in records] == [256]
    assert read_outcome(tmp_path / "run").goals[5.0].examples == 256
    assert (tmp_path / "run" / "best.pt").exists()


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_to_any_rank_ends_an_evaluation_that_would_take_hours(rank, tmp_path):
    flags = (*RANKS, "--total-transitions", "2048", *QUIET, "--eval-episodes", "100000")
    started = start_step(tmp_path, *flags, "--log-every", "1", "--out", str(tmp_path / "run"))
    # the record of update 4 comes after its evaluation
    wait_until(lambda: len(_lines(tmp_path / "run" / "metrics.jsonl")) == 3)
    started[rank].process.join(2.0)
    os.kill(started[rank].pid, signal.SIGTERM)
    ended = [one.end() for one in started]
    assert [one.exit_code for one in ended] == [143, 143], ended[0].err
    assert not evaluations(tmp_path / "run")


def _lines(path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


# --- options ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--eval-episodes", "3"], "eval_episodes 3 has no effect without evaluations; give --eval-every"),
        (["--eval-deterministic", "True"], "eval_deterministic True has no effect"),
        (["--eval-every", "0"], "eval_every 0 is out of range"),
        (["--eval-every", "10", "--eval-episodes", "0"], "eval_episodes 0 is out of range"),
    ],
)
def test_options_without_effect_or_sense_are_refused(flags, words, tmp_path):
    ended = run(tmp_path, *CARTPOLE, *flags, "--out", "run")
    assert ended.exit_code == 2
    assert words in ended.err
    assert len(ended.err.splitlines()) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("flag", "words"), [("pong", False), (None, True)])
def test_by_default_atari_is_evaluated_by_drawn_actions_and_all_else_by_the_most_likely(flag, words):
    config = TrainConfig(game=flag) if flag else TrainConfig(env="CartPole-v1")
    assert rlgns.agents.evaluating.is_deterministic(resolved(config)) is words
