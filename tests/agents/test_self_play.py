"""Two-player Pong and self-play: the rules by hand, opponents that are what they claim to be, and whole runs."""

import copy

import pytest
import torch
from sb3_contrib import RecurrentPPO

from rlgns.agents.self_play import PAST_SHARE, Opponents, SelfPlayPong, action_probabilities, mean_return
from rlgns.agents.two_player_pong import (
    BALL_SPEED,
    HALF_PADDLE,
    LONGEST,
    PADDLE_SPEED,
    STEEPEST,
    TwoPlayerPong,
    follow_the_ball,
)
from rlgns.commands.cli import main
from rlgns.runs.json_files import read_json
from rlgns.runs.records import read_records

UP, STAY, DOWN = 0, 1, 2


def one_game(ball, velocity, paddles):
    game = TwoPlayerPong(1, 0)
    game.ball, game.velocity = torch.tensor([ball]), torch.tensor([velocity])
    game.paddles = torch.tensor([paddles])
    return game


def act(game, first=STAY, second=STAY):
    reward, decided, too_long = game.step(torch.tensor([first]), torch.tensor([second]))
    return float(reward), bool(decided), bool(too_long)


def test_a_ball_that_meets_the_paddle_flies_back_the_steeper_the_further_from_its_middle():
    game = one_game([BALL_SPEED / 2, 0.55], [-BALL_SPEED, 0.0], [0.5, 0.5])
    assert act(game) == (0.0, False, False)
    assert game.velocity.tolist() == [pytest.approx([BALL_SPEED, STEEPEST * 0.05 / HALF_PADDLE])]
    assert game.ball.tolist() == [pytest.approx([0.0, 0.55])]


@pytest.mark.parametrize(("side", "reward"), [(0, -1.0), (1, 1.0)])
def test_a_ball_that_misses_the_paddle_decides_the_game(side, reward):
    x, speed = (BALL_SPEED / 2, -BALL_SPEED) if side == 0 else (1 - BALL_SPEED / 2, BALL_SPEED)
    assert act(one_game([x, 0.8], [speed, 0.0], [0.5, 0.5])) == (reward, True, False)


def test_walls_reflect_and_paddles_stop_at_them():
    game = one_game([0.5, 0.02], [BALL_SPEED, -0.05], [HALF_PADDLE, 1 - HALF_PADDLE])
    act(game, UP, DOWN)
    assert game.ball.tolist() == [pytest.approx([0.5 + BALL_SPEED, 0.03])]
    assert game.velocity.tolist() == [pytest.approx([BALL_SPEED, 0.05])]
    assert game.paddles.tolist() == [pytest.approx([HALF_PADDLE, 1 - HALF_PADDLE])]
    act(game, DOWN, UP)
    assert game.paddles.tolist() == [pytest.approx([HALF_PADDLE + PADDLE_SPEED, 1 - HALF_PADDLE - PADDLE_SPEED])]


def test_a_game_without_a_winner_ends_after_its_longest_time():
    game = one_game([0.5, 0.5], [0.0, 0.0], [0.5, 0.5])
    assert [act(game) for _ in range(LONGEST)][-2:] == [(0.0, False, False), (0.0, False, True)]


def test_the_game_is_the_same_from_both_sides():
    game = TwoPlayerPong(500, 0)
    other = copy.deepcopy(game)
    other.ball[:, 0], other.velocity[:, 0] = 1 - other.ball[:, 0], -other.velocity[:, 0]
    rng = torch.Generator().manual_seed(0)
    for _ in range(60):
        first, second = torch.randint(3, (2, 500), generator=rng)
        torch.testing.assert_close(game.seen_by(0), other.seen_by(1))
        reward, decided, _ = game.step(first, second)
        mirrored, decided_there, _ = other.step(second, first)
        # rounding of 1 − x may shift an arrival by a step in few of the games; none of 500 here
        assert torch.equal(reward, -mirrored)
        assert torch.equal(decided, decided_there)
    assert decided.any()


def test_games_do_not_affect_one_another():
    games = [TwoPlayerPong(6, 3), TwoPlayerPong(6, 3)]
    for step in range(12):
        actions = torch.full((6,), STAY)
        games[0].step(actions, actions)
        changed = actions.clone()
        changed[0] = UP if step < 5 else STAY
        games[1].step(changed, actions)
    assert torch.equal(games[0].ball[1:], games[1].ball[1:])
    assert not torch.equal(games[0].paddles[:1], games[1].paddles[:1])


def test_the_player_by_rule_keeps_up_with_flat_balls_and_wins_against_one_that_stays():
    game, won = TwoPlayerPong(2_000, 1), torch.zeros(2_000)
    for _ in range(LONGEST):
        reward, decided, too_long = game.step(torch.ones(2_000, dtype=torch.long), follow_the_ball(game.seen_by(1)))
        won += reward
        game.restart(decided | too_long)
    assert won.mean() < -1.5  # several games each


def learner(num_games=8, seed=0):
    games = SelfPlayPong(num_games, seed)
    return RecurrentPPO("MlpLstmPolicy", games, n_steps=8, batch_size=64, seed=seed, device="cpu",
                        policy_kwargs={"lstm_hidden_size": 8, "net_arch": [8]}), games  # fmt: skip


def test_opponents_act_as_the_policies_that_they_are_with_their_own_memory():
    model, _ = learner()
    opponents = Opponents(4, 0)
    opponents.follow(model.policy, remember=True)
    before = [p.clone() for p in model.policy.parameters()]
    with torch.no_grad():
        for p in model.policy.parameters():
            p.add_(torch.randn_like(p))
    opponents.follow(model.policy, remember=False)  # the present self is new, the past one is as it was
    present, past = opponents.selves
    assert all(torch.equal(a, b) for a, b in zip(past.parameters(), before, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(present.parameters(), model.policy.parameters(), strict=True))
    assert not any(p.requires_grad for p in present.parameters())
    opponents.plays = torch.tensor([0, 1, 0, 1])
    states = {n: (torch.zeros(1, 2, 8), torch.zeros(1, 2, 8)) for n in (0, 1)}
    generator = copy.deepcopy(opponents.generator.get_state())
    mirror = torch.Generator()
    mirror.set_state(generator)
    for step in range(5):
        seen = torch.rand(4, 4, generator=torch.Generator().manual_seed(step))
        expected = torch.zeros(4, dtype=torch.long)
        with torch.no_grad():
            for number, policy in ((0, present), (1, past)):
                probabilities, states[number] = action_probabilities(policy, seen[number::2], states[number])
                expected[number::2] = torch.multinomial(probabilities, 1, generator=mirror).flatten()
        assert torch.equal(opponents.act(seen), expected)
    opponents.draw(torch.tensor([True, False, False, False]))
    assert all(bool((state[:, 0] == 0).all()) and bool((state[:, 1] != 0).any()) for state in opponents._states)


def test_a_share_of_the_games_is_against_past_selves():
    model, _ = learner()
    opponents = Opponents(20_000, 0)
    for _ in range(7):
        opponents.follow(model.policy, remember=True)
    opponents.draw(torch.ones(20_000, dtype=torch.bool))
    assert len(opponents.selves) == 5  # the present one and the latest four
    shares = torch.bincount(opponents.plays) / 20_000
    assert shares.tolist() == pytest.approx([1 - PAST_SHARE, *[PAST_SHARE / 4] * 4], abs=0.01)  # 5 standard errors


def test_a_learner_of_mirrored_games_has_even_chances_against_itself():
    model, games = learner(num_games=2_000)
    games.opponents.follow(model.policy, remember=False)
    states, results = (torch.zeros(1, 2_000, 8), torch.zeros(1, 2_000, 8)), []
    for _ in range(30):
        with torch.no_grad():
            probabilities, states = action_probabilities(model.policy, games.game.seen_by(0), states)
        _, rewards, over, _ = games.step(torch.multinomial(probabilities, 1).flatten().numpy())
        results += rewards[over].tolist()
        for state in states:
            state[:, torch.as_tensor(over)] = 0
    assert len(results) > 1_000
    assert abs(sum(results)) <= 5 * len(results) ** 0.5  # five standard errors
    assert -1 <= mean_return(model.policy, 200, 0) <= 0


FLAGS = ("--num-envs", "8", "--num-steps", "4", "--eval-episodes", "20", "--eval-every", "100", "--hidden-size", "8",
         "--wandb", "disabled", "--num-torch-threads", "1")  # fmt: skip


def train(out, *flags):
    return main(["train", "self_play", *FLAGS, "--out", str(out), *flags])


def test_a_run_is_recorded_and_the_same_again(tmp_path, capsys):
    records = []
    for name in ("one", "two"):
        assert train(tmp_path / name, "--total-transitions", "500", "--past-every", "100", "--measure-every", "1") == 0
        records.append(read_records(tmp_path / name / "metrics.jsonl"))
    assert len(records[0]) == 15
    assert records[0][-1]["progress/transitions"] == 480
    assert "noise/policy/sq_norm" in records[0][0]
    for one, two in zip(*records, strict=True):
        assert {k: v for k, v in one.items() if "time/" not in k} == {k: v for k, v in two.items() if "time/" not in k}
    config = read_json(tmp_path / "one" / "config.json")
    assert config["task"] == "recurrent PPO on two-player Pong"
    assert config["batch_size"] == 32
    assert (tmp_path / "one" / "noise_scale.png").exists()
    assert main(["show", str(tmp_path / "one")]) == 0
    assert "rlgns probe" not in capsys.readouterr().out


def test_measuring_does_not_change_the_training(tmp_path):
    for name, flag in (("with", "--measure"), ("without", "--no-measure")):
        assert train(tmp_path / name, "--total-transitions", "200", flag) == 0
    last = [read_records(tmp_path / name / "metrics.jsonl")[-1] for name in ("with", "without")]
    assert last[0]["rollout/episode_return"] == last[1]["rollout/episode_return"]
    assert last[0]["train/value_loss"] == last[1]["train/value_loss"]


def test_a_goal_ends_the_run(tmp_path):
    assert train(tmp_path / "run", "--total-transitions", "5000", "--goals", "-1") == 0
    summary = read_json(tmp_path / "run" / "summary.json")
    assert summary["goal/-1/steps_to_goal"] == summary["progress/steps"] == 4  # at the first evaluation after the start


def test_bad_flags_are_refused(tmp_path, capsys):
    assert train(tmp_path / "run", "--num-minibatches", "7") == 2
    assert "num_minibatches 7 does not divide 8 × 4 transitions" in capsys.readouterr().err
    assert train(tmp_path / "run", "--total-transitions", "20") == 2
    assert "total_transitions 20 is less than one update of 32" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    train(tmp_path / "run", "--total-transitions", "64")
    assert main(["probe", str(tmp_path / "run")]) == 2
    assert "keeps no policy to probe; name another run" in capsys.readouterr().err
