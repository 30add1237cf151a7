"""Every vectorisation keeps Stable-Baselines3's contract; all kinds of environments are trained, measured, resumed."""

import importlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor
from support.processes import HANG

import rlgns.agents.cli
from rlgns.agents.atari import find_game, game_names
from rlgns.agents.config import TrainConfig, resolved
from rlgns.agents.environments import make_environments
from rlgns.agents.gymnasium_envs import GymnasiumVecEnv
from rlgns.agents.observation_adapters import adapted
from rlgns.runs.records import read_records

NUM_ENVS, SEED, LIMIT = 4, 7, 30

if importlib.util.find_spec("minigrid") is not None:
    importlib.import_module("minigrid")  # registers its environments, before a test replaces the registry

needs_envpool = pytest.mark.skipif(
    importlib.util.find_spec("envpool") is None, reason="EnvPool is not installed; it is no part of the extra dev"
)


def short_cartpole():
    return gymnasium.make("CartPole-v1", max_episode_steps=LIMIT)


def vector_of_cartpoles(num_envs, mode):
    return SyncVectorEnv([short_cartpole] * num_envs, autoreset_mode=mode)


def own_vector_env(num_envs, autoreset_mode=AutoresetMode.NEXT_STEP, **_):
    """As an environment's author would register one that can be told when to start anew."""
    return vector_of_cartpoles(num_envs, autoreset_mode)


def masked_vector_env(num_envs, **_):
    """The same, of one that cannot, but that starts single environments anew."""
    return vector_of_cartpoles(num_envs, AutoresetMode.NEXT_STEP)


class Switches(gymnasium.Env):
    """Two switches to set as two lamps show; the actions are MultiDiscrete."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012 -- as Gymnasium declares it
    observation_space = spaces.MultiDiscrete([2, 3])
    action_space = spaces.MultiDiscrete([2, 3])

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time, self.lamps = 0, self.np_random.integers((2, 3))
        return self.lamps, {}

    def step(self, action):
        reward, self.time = float(np.mean(action == self.lamps)), self.time + 1
        self.lamps = self.np_random.integers((2, 3))
        return self.lamps, reward, False, self.time >= 10, {}


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setattr(gymnasium.envs.registration, "registry", dict(gymnasium.registry))
    gymnasium.register("ShortCartPole-v0", short_cartpole, vector_entry_point=own_vector_env)
    gymnasium.register("MaskedCartPole-v0", short_cartpole, vector_entry_point=masked_vector_env)
    gymnasium.register("Switches-v0", Switches)
    gymnasium.register(  # nothing of it makes a worker process import this module, and torch with it
        "LightCartPole-v0", "gymnasium.envs.classic_control.cartpole:CartPoleEnv", max_episode_steps=LIMIT
    )


def trajectory(environments, num_steps, seed=SEED):
    """Everything that an agent sees, with actions drawn from a seed; times are left out."""
    environments.seed(seed)
    rng, seen = np.random.default_rng(0), [environments.reset()]
    for _ in range(num_steps):
        actions = rng.integers(environments.action_space.n, size=environments.num_envs)
        observations, rewards, dones, infos = environments.step(actions)
        ends = [
            (info["terminal_observation"], info["TimeLimit.truncated"], info["episode"]["r"], info["episode"]["l"])
            for info, done in zip(infos, dones, strict=True)
            if done
        ]
        seen.append((observations, rewards, dones, ends))
    environments.close()
    return seen


def assert_same(first, second):
    np.testing.assert_equal(first, second)  # bitwise, through lists, tuples and dictionaries
    for (a, rewards, *_), (b, others, *_) in zip(first[1:], second[1:], strict=True):
        assert rewards.dtype == others.dtype == np.float32
        if not isinstance(a, dict):
            assert a.dtype == b.dtype


@pytest.fixture(scope="module")
def as_sb3():
    """Stable-Baselines3's own environments: 400 steps of each, with ends of both kinds."""
    seen = trajectory(make_vec_env(short_cartpole, NUM_ENVS), 400)
    truncated = [end[1] for step in seen[1:] for end in step[3]]
    assert any(truncated)
    assert not all(truncated)
    return seen


@pytest.mark.parametrize("mode", list(AutoresetMode), ids=lambda mode: mode.value)
def test_every_mode_of_autoreset_gives_what_stable_baselines3_gives(mode, as_sb3):
    assert_same(trajectory(GymnasiumVecEnv(vector_of_cartpoles(NUM_ENVS, mode)), 400), as_sb3)


@pytest.mark.parametrize(
    ("name", "vectorization"),
    [
        ("ShortCartPole-v0", "sync"),
        ("LightCartPole-v0", "async"),
        ("ShortCartPole-v0", "vector_entry_point"),
        ("MaskedCartPole-v0", "vector_entry_point"),
    ],
)
def test_every_vectorization_gives_what_stable_baselines3_gives(name, vectorization, as_sb3):
    config = resolved(TrainConfig(env=name, num_envs=NUM_ENVS, vectorization=vectorization))
    assert_same(trajectory(make_environments(config, seed=0), 400), as_sb3)


@pytest.mark.parametrize("mode", list(AutoresetMode), ids=lambda mode: mode.value)
def test_dictionaries_of_observations_are_those_of_stable_baselines3(mode):
    pytest.importorskip("minigrid", reason="MiniGrid is not installed")

    def make():
        return adapted(gymnasium.make("MiniGrid-Empty-5x5-v0", max_steps=20))

    ours = GymnasiumVecEnv(SyncVectorEnv([make] * NUM_ENVS, autoreset_mode=mode))
    assert set(ours.observation_space) == {"direction", "image"}  # without the mission, a text
    assert ours.observation_space["image"].shape == (147,)
    assert_same(trajectory(ours, 100), trajectory(make_vec_env(make, NUM_ENVS), 100))


def test_environments_that_can_only_be_reset_together_are_refused_at_once(tmp_path, capsys):
    arguments = ["--env", "CartPole-v1", "--vectorization", "vector_entry_point", "--out", str(tmp_path / "run")]
    assert rlgns.agents.cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: CartPoleVectorEnv ends episodes in the mode NextStep and resets all")
    assert error.endswith("use --vectorization sync or async\n")
    assert not (tmp_path / "run").exists()


@needs_envpool
def test_envpool_keeps_the_contract_its_steps_follow_the_equations_of_motion():
    config = resolved(TrainConfig(env="envpool:CartPole-v1", num_envs=NUM_ENVS))
    assert (config.env, config.vectorization) == ("CartPole-v1", "envpool")
    seen = trajectory(make_environments(config, seed=0), 500)
    before, returns, num_ended = seen[0], np.zeros(NUM_ENVS), 0
    for after, rewards, dones, ends in seen[1:]:
        returns += rewards
        reached = after.copy()
        for i, (last, is_truncated, total, length) in zip(np.flatnonzero(dones), ends, strict=True):
            reached[i] = last
            assert np.abs(after[i]).max() <= 0.05  # where CartPole starts
            assert is_truncated == (length == 500)
            assert total == length == returns[i]
            num_ended += 1
        # x' = x + 0.02 v in every step: none is the one that EnvPool spends on a new start
        np.testing.assert_allclose(reached[:, 0], before[:, 0] + 0.02 * before[:, 1], atol=1e-6)
        before, returns = after, np.where(dones, 0, returns)
    assert num_ended > 20


@needs_envpool
def test_envpools_environment_i_plays_as_the_first_of_seed_plus_i():
    def first_observations(seed):
        environments = make_environments(resolved(TrainConfig(env="envpool:CartPole-v1", num_envs=NUM_ENVS)), seed=99)
        environments.seed(seed)
        observations = environments.reset()
        assert environments.env_is_wrapped(Monitor) == [True] * NUM_ENVS
        environments.close()
        return observations

    first, again, shifted = first_observations(3), first_observations(3), first_observations(4)
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(first[1:], shifted[:-1])
    assert len(np.unique(first[:, 0])) == NUM_ENVS


# Observations that Stable-Baselines3 does not take


class Observing(gymnasium.Env):
    def __init__(self, space):
        self.observation_space, self.action_space = space, spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        return self.observation_space.sample(), {}


def test_a_tuple_of_discrete_values_becomes_ones_in_their_places():
    environment = adapted(gymnasium.make("Blackjack-v1"))
    assert environment.observation_space.shape == (32 + 11 + 2,)
    expected = np.zeros(45)
    expected[[14, 32 + 10, 43 + 0]] = 1  # a sum of 14, the dealer's ten, no usable ace
    np.testing.assert_array_equal(environment.observation((14, 10, 0)), expected)


def test_only_what_has_to_change_is_changed():
    image, vector = spaces.Box(0, 255, (64, 64, 3), np.uint8), spaces.Box(-1, 1, (3,))
    for space in (image, vector, spaces.Discrete(3), spaces.Dict(a=image, b=vector)):
        environment = Observing(space)
        assert adapted(environment) is environment
    mixed = adapted(Observing(spaces.Dict(a=image, b=spaces.Dict(c=vector, d=spaces.Discrete(2)), e=spaces.Text(9))))
    assert mixed.observation_space == spaces.Dict(
        a=image, b=spaces.utils.flatten_space(spaces.Dict(c=vector, d=spaces.Discrete(2)))
    )
    assert mixed.observation_space.contains(mixed.reset()[0])


@pytest.mark.parametrize("space", [spaces.Sequence(spaces.Discrete(2)), spaces.Text(5), spaces.Dict(a=spaces.Text(5))])
def test_observations_without_a_fixed_size_are_refused(space):
    with pytest.raises(ValueError, match="which no policy here takes"):
        adapted(Observing(space))


# Whole runs

SHORT = ["--num-envs=4", "--num-steps=16", "--wandb=disabled", "--checkpoint-seconds=0.1"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--env=Blackjack-v1"],
        ["--env=FrozenLake-v1", "--algo=ppo"],
        ["--env=Switches-v0"],
        ["--env=Pendulum-v1", "--algo=ppo"],
        ["--env=CartPole-v1", "--vectorization=async"],
        pytest.param(["--env=envpool:CartPole-v1"], marks=needs_envpool),
        *(
            pytest.param(
                arguments,
                marks=pytest.mark.skipif(
                    importlib.util.find_spec(package) is None, reason=f"{package} is not installed"
                ),
            )
            for package, arguments in [
                ("minigrid", ["--env=minigrid:MiniGrid-Empty-5x5-v0"]),
                ("mujoco", ["--env=HalfCheetah-v5", "--algo=ppo"]),
                ("Box2D", ["--env=LunarLanderContinuous-v3"]),
            ]
        ),
    ],
    ids=" ".join,
)
@pytest.mark.filterwarnings("ignore:builtin type .* has no __module__ attribute")  # Box2D; as an error it is a crash
def test_a_run_is_trained_measured_and_resumed(arguments, tmp_path, capsys):
    out = tmp_path / "run"
    main = rlgns.agents.cli.main
    assert main([*arguments, *SHORT, "--total-transitions=320", f"--out={out}"]) == 0, capsys.readouterr().err
    more = ["--allow-env-module"] if "minigrid:" in arguments[0] else []
    assert main([f"--resume={out}", "--total-transitions=640", *more]) == 0, capsys.readouterr().err
    records = read_records(out / "metrics.jsonl")
    measured = [record["progress/steps"] for record in records if "noise/policy/noise_scale" in record]
    assert measured == [1, 3, 5, 7, 9]
    assert json.loads((out / "summary.json").read_text())["progress/examples"] == 640


@pytest.mark.skipif(importlib.util.find_spec("minigrid") is None, reason="minigrid is not installed")
def test_a_module_that_only_its_own_run_names_is_asked_for_when_it_is_resumed(tmp_path, capsys):
    out = str(tmp_path / "run")
    assert (
        rlgns.agents.cli.main(
            ["--env=minigrid:MiniGrid-Empty-5x5-v0", *SHORT, "--total-transitions=64", f"--out={out}"]
        )
        == 0
    )
    assert rlgns.agents.cli.main([f"--resume={out}", "--total-transitions=128"]) == 2
    assert "add --allow-env-module" in capsys.readouterr().err


@pytest.mark.slow
def test_ctrl_c_ends_a_run_of_worker_processes_in_good_order_and_leaves_no_process(tmp_path):
    command = [sys.executable, "-m", "rlgns", "train", "atari", "--env=CartPole-v1", "--vectorization=async", *SHORT]
    process = subprocess.Popen(
        [*command, "--total-transitions=100000000", f"--out={tmp_path / 'run'}"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    records, end = tmp_path / "run" / "metrics.jsonl", time.monotonic() + HANG
    while not (records.exists() and records.stat().st_size) and process.poll() is None and time.monotonic() < end:
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    out, err = process.communicate(timeout=HANG)
    assert process.returncode == 130, err
    assert b"Traceback" not in out + err
    assert (tmp_path / "run" / "summary.json").exists()
    deadline = time.monotonic() + HANG
    while time.monotonic() < deadline:
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    raise AssertionError("a process is left")


# Bad input


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--env=Qqqzx-Jjjw-v0"], "name the package as well: --env PACKAGE:Qqqzx-Jjjw-v0"),
        (["--env=no_such_package:Foo-v0"], "needs the package no_such_package, which is not installed"),
        (["--env=CartPole-v1", "--vectorization=subproc"], "vectorization"),
        (["--game=pong", "--vectorization=async"], "is for --env, not for Atari games, which ale-py's threads play"),
        (["--env=Pendulum-v1", "--vectorization=vector_entry_point"], "doesn't have a vector entry point"),
        pytest.param(["--env=envpool:CartPol-v1"], "did you mean CartPole-v1", marks=needs_envpool),
    ],
)
def test_an_environment_that_cannot_be_made_is_one_line(arguments, words, tmp_path, capsys):
    assert rlgns.agents.cli.main([*arguments, f"--out={tmp_path / 'run'}"]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("module", "env", "words"),
    [
        ("Box2D", "LunarLander-v3", 'run `pip install swig` followed by `pip install "gymnasium[box2d]"`'),
        ("envpool", "envpool:CartPole-v1", "type: pip install envpool"),
    ],
)
def test_a_package_that_is_missing_is_named_with_the_command_that_installs_it(
    module, env, words, tmp_path, monkeypatch, capsys
):
    monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
    for name in [name for name in sys.modules if name.startswith("gymnasium.envs.box2d")]:
        monkeypatch.delitem(sys.modules, name)
    assert rlgns.agents.cli.main([f"--env={env}", f"--out={tmp_path / 'run'}"]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_the_list_of_games_has_every_name_that_is_taken(capsys):
    assert rlgns.agents.cli.main(["--list-games"]) == 0
    names = capsys.readouterr().out.split()
    assert names == game_names()
    assert [find_game(name) for name in names] == names
