import warnings

import gymnasium
import numpy as np
import pytest
import stable_baselines3
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv
from support.environments import RandomWalks, TestVecEnv

import rlgns.agents.task
from rlgns.agents import A2C, PPO, AtariVecEnv, DeviceRolloutBuffer, NoiseScaleCallback
from rlgns.agents.cli import parse
from rlgns.agents.copies import NUMBERS_OF_STARTS, SameObservations, SameStarts, copies_in_words, groups_of_same_starts
from rlgns.runs.records import COPIES

KINDS = [stable_baselines3.A2C, A2C, stable_baselines3.PPO, PPO]


class Tiled(RandomWalks):
    """Random walks in which some environments return what others do."""

    def __init__(self, num_envs, source):
        super().__init__(num_envs, seed=1)
        self.source = np.array(source)

    def reset(self):
        return super().reset()[self.source]

    def step_wait(self):
        observations, rewards, dones, infos = super().step_wait()
        return observations[self.source], rewards[self.source], dones[self.source], [infos[i] for i in self.source]


class Line(TestVecEnv):
    """Positions on a circle of 13 without chance; the first of two actions goes on, and episodes do not end."""

    def __init__(self, num_envs):
        super().__init__(num_envs, spaces.Box(0, 13, (1,), np.float32), spaces.Discrete(2))
        self.positions = np.zeros(num_envs, int)

    def reset(self):
        return (self.positions % 13).astype(np.float32)[:, None]

    def step_wait(self):
        self.positions += np.asarray(self.actions) == 0
        return self.reset(), np.ones(self.num_envs, np.float32), np.zeros(self.num_envs, bool), [{}] * self.num_envs


def trained(kind, environments, num_steps=8, num_updates=60, measure_every=1, **options):
    noise = NoiseScaleCallback(measure_every)
    said = []
    noise.warn = said.append
    if issubclass(kind, stable_baselines3.PPO):
        options |= {"batch_size": environments.num_envs * num_steps, "n_epochs": 1}
    model = kind("MlpPolicy", environments, n_steps=num_steps, device="cpu", seed=3, **options)
    model.learn(num_updates * num_steps * environments.num_envs, callback=noise)
    environments.close()
    return noise, said


@pytest.mark.parametrize("kind", KINDS)
def test_environments_that_return_what_others_do_are_named_once(kind):
    _, said = trained(kind, Tiled(8, [0, 1, 2, 3, 4, 5, 6, 3]))
    assert len(said) == 1
    assert said[0].startswith("environments 3 and 7 have returned the same observations in")


def test_the_same_in_a_buffer_on_the_training_device():
    _, said = trained(A2C, Tiled(8, [0, 1, 2, 0, 1, 2, 6, 7]), rollout_buffer_class=DeviceRolloutBuffer)
    assert len(said) == 1
    assert said[0].startswith("environments 0 and 3; 1 and 4; 2 and 5 have returned the same")


def test_users_of_stable_baselines3_get_a_python_warning():
    environments = Tiled(4, [0, 0, 2, 3])
    model = stable_baselines3.A2C("MlpPolicy", environments, device="cpu", seed=3)
    with pytest.warns(UserWarning, match="environments 0 and 1 have .* give each environment its own seed"):
        model.learn(4 * 5 * 400, callback=NoiseScaleCallback(1))


def test_where_all_environments_are_alike_and_start_at_random_they_are_copies():
    _, said = trained(A2C, Tiled(4, [0, 0, 0, 0]), num_updates=140)
    assert len(said) == 1
    assert said[0].startswith("environments 0, 1, 2 and 3 have returned the same observations in")


def test_where_nothing_tells_any_two_environments_apart_the_other_possibility_is_named():
    same = SameObservations(4)
    for step in range(1, 1002):
        same.observe({n: [bytes([step % 13])] for n in range(4)}, step)
        same.end_rollout()
        assert bool(same.groups()) == (step >= 1000)
    words = copies_in_words(same.groups(), {}, 4)
    assert words.startswith("all 4 environments have returned the same observations in 1001 measured rollouts: unless")


def test_a_run_says_it_once_at_the_terminal_in_its_records_and_in_its_closing_box(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(
        rlgns.agents.task, "make_environments", lambda config, seed: Tiled(config.num_envs, [0, 1, 2, 3, 4, 5, 6, 3])
    )
    out = tmp_path / "run"
    options = [
        "--env",
        "CartPole-v1",
        "--algo",
        "a2c",
        "--num-envs",
        "8",
        "--num-steps",
        "8",
        "--measure-every",
        "1",
        "--wandb",
        "disabled",
    ]
    assert rlgns.agents.task.run(parse([*options, "--total-transitions", "3840", "--out", str(out)])) == 0
    written = capsys.readouterr()
    sentence = "environments 3 and 7 have returned the same observations in"
    assert written.err.count(sentence) == 1
    recorded = [record[COPIES] for record in rlgns.read_records(out / "metrics.jsonl") if COPIES in record]
    assert len(recorded) == 1
    assert recorded[0].startswith(sentence)
    assert f"Mind {sentence}" in " ".join(written.out.split())


def cartpoles(seeds):
    environments = DummyVecEnv([lambda: gymnasium.make("CartPole-v1")] * len(seeds))
    environments._seeds = list(seeds)  # those of the next reset
    environments.seed = lambda seed=None: None  # the model's seed would give each its own
    return environments


def test_environments_of_equal_seed_are_named_by_their_starts_though_their_actions_differ():
    _, said = trained(stable_baselines3.A2C, cartpoles([7, 1, 7, 3, 4]), num_steps=16)
    assert len(said) == 1
    assert said[0].startswith("environments 0 and 2 have started 10 episodes in a row")


def test_environments_of_their_own_seeds_raise_no_alarm():
    noise, said = trained(stable_baselines3.A2C, cartpoles(range(8)), num_steps=16)
    assert not said
    assert not noise.copies.warning


def test_openings_of_atari_games_without_random_starts_raise_no_alarm():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        environments = AtariVecEnv("breakout", num_envs=8, noop_max=0)
    noise = NoiseScaleCallback(1)
    noise.warn = pytest.fail
    model = A2C("CnnPolicy", environments, device="cpu", seed=3)
    model.learn(8 * 5 * 40, callback=noise)
    environments.close()


def test_a_constant_observation_says_nothing():
    class Bandit(Line):
        def reset(self):
            return np.zeros((self.num_envs, 1), np.float32)

    _, said = trained(A2C, Bandit(4), num_updates=200)
    assert not said


def test_environments_without_chance_under_a_policy_that_hardly_varies_part_and_raise_no_alarm():
    # The simulation that the threshold was set by: all N environments go around in step, and each falls behind with
    # probability q at every step. Independent environments then stay alike for 1/q steps and more. Of 200 runs with the
    # allowed chance of 0.1 % (of each look; looks in a row resemble one another) 3 alarms have a probability of 0.1 %.
    rng = np.random.default_rng(0)
    assert sum(_alarm(rng, num_envs=8, q=0.01, num_steps=5, num_rollouts=1000) for _ in range(200)) < 3


def _alarm(rng, num_envs, q, num_steps, num_rollouts):
    same, positions = SameObservations(num_envs), np.zeros(num_envs, int)
    for rollout in range(num_rollouts):
        digests = {n: [] for n in same.unresolved()}
        if not digests:
            return False
        for _ in range(num_steps):
            for n, seen in digests.items():
                seen.append(bytes([positions[n] % 13]))
            positions += rng.random(num_envs) >= q
        same.observe(digests, rollout * num_steps + 1)
        same.end_rollout()
        if same.groups():
            return True
    return False


def starts_of(*sequences):
    same = SameStarts()
    for n, sequence in enumerate(sequences):
        for start in sequence:
            same.add(n, str(start).encode())
    return same.signs


def test_starts_by_hand():
    first = NUMBERS_OF_STARTS[0]
    varied, other = range(first), range(100, 100 + first)
    assert groups_of_same_starts(starts_of(varied, other, varied), 3) == {(0, 2): first}
    assert groups_of_same_starts(starts_of(varied, [], varied), 3) == {}  # one of them has not got so far
    assert groups_of_same_starts(starts_of(range(20), [], range(20)), 3) == {(0, 2): first}  # nor will
    assert groups_of_same_starts(starts_of(varied, varied[:-1]), 2) == {}  # one episode too few
    assert groups_of_same_starts(starts_of([0] * 400, [0] * 400), 2) == {}  # starts that do not vary
    # two starts in turn: c = 9/19 for 20 starts, and 4·c²⁰ = 1.3e-6 is above 1e-6; for 40, c = 19/39, and it is 1e-12
    assert groups_of_same_starts(starts_of([0, 1] * 20, [0, 1] * 20), 2) == {(0, 1): 40}


def test_words_name_at_most_four_groups_and_eight_environments():
    pairs = {(n, n + 8): 6 for n in range(8)}
    assert copies_in_words(pairs, {}, 16).startswith("environments 0 and 8; 1 and 9; 2 and 10; 3 and 11; and 4 more")
    many = {tuple(range(20)): 5}
    assert copies_in_words(many, {}, 21).startswith("environments 0, 1, 2, 3, 4, 5, … and 19 have returned")
    assert copies_in_words({}, {}, 8) == ""
