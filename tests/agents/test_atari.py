import doctest

import gymnasium
import numpy as np
import pytest
from ale_py import ALEInterface, roms
from ale_py.env import AtariEnv
from ale_py.vector_env import AtariVectorEnv
from gymnasium.wrappers import AtariPreprocessing, FrameStackObservation
from stable_baselines3 import A2C
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.vec_env import VecMonitor, VecNormalize, VecTransposeImage, is_vecenv_wrapped

import rlgns.agents.atari
from rlgns.agents.atari import AtariVecEnv, find_game, game_names

UNMOVED = {"noop_max": 0, "use_fire_reset": False}  # every game starts at the emulator's frame 0


def random_actions(env, num_steps, seed=0):
    return np.random.default_rng(seed).integers(env.action_space.n, size=(num_steps, env.num_envs))


def play(env, num_steps, seed=0):
    """The first observations, and every step's (observations, rewards, dones, infos) under random actions."""
    first = env.reset()
    return first, [env.step(actions) for actions in random_actions(env, num_steps, seed)]


def assert_same(a, b):
    """Trajectories are equal in everything but the seconds of `episode`."""
    np.testing.assert_array_equal(a[0], b[0])
    for x, y in zip(a[1], b[1], strict=True):
        for left, right in zip(x[:3], y[:3], strict=True):
            np.testing.assert_array_equal(left, right)
        for left, right in zip(x[3], y[3], strict=True):
            assert left.keys() == right.keys()
            assert left.get("TimeLimit.truncated") == right.get("TimeLimit.truncated")
            assert [left.get("episode", {}).get(k) for k in "rl"] == [right.get("episode", {}).get(k) for k in "rl"]


class IdleStart(gymnasium.Wrapper):
    def reset(self, *, seed=None, options=None):
        observation, info = self.env.reset()
        for action in options["idle"]:
            observation, *_, info = self.env.step(action)
        return observation, info


class OneGame:
    """The slow reference: gymnasium's wrappers around ale-py's single environment, one emulator frame at a time."""

    def __init__(self, game, seed, repeat_action_probability):
        emulator = AtariEnv(game, frameskip=1, repeat_action_probability=repeat_action_probability)
        emulator.ale.setInt("random_seed", seed)  # AtariEnv would hash it; the vector environment does not
        emulator.load_game()
        self.ale, self.meanings = emulator.ale, emulator.get_action_meanings()
        preprocessed = AtariPreprocessing(IdleStart(emulator), noop_max=0, frame_skip=4, screen_size=84)
        self.env = FrameStackObservation(preprocessed, 4, padding_type="zero")

    def start(self, num_frames, fire):
        """Start a game with `num_frames` idle frames, of which the first is FIRE if that is wanted."""
        idle = ([self.meanings.index("FIRE")] if fire else []) + [0] * (num_frames - fire)
        observation, _ = self.env.reset(options={"idle": idle})
        self.lives = self.ale.lives()
        return observation

    def step(self, action):
        observation, points, game_over, _, info = self.env.step(action)
        lost_life = 0 < info["lives"] < self.lives
        self.lives = info["lives"]
        return observation, points, game_over, lost_life


def assert_plays_like_the_slow_truth(game, num_steps, min_games, *, fire=False, noop_max=0, stickiness=0.0):
    settings = {"use_fire_reset": fire, "noop_max": noop_max, "repeat_action_probability": stickiness}
    env = AtariVecEnv(game, 2, seed=7, reward_clipping=False, **settings)
    truths = [OneGame(game, 7 + i, stickiness) for i in range(2)]
    # C++'s generator draws the number of idle frames of a game. A second environment with the same seeds counts them.
    twin = AtariVectorEnv(game, 2, autoreset_mode="SameStep", life_loss_info=True, reward_clipping=False, **settings)
    idle = twin.reset(seed=7)[1]["episode_frame_number"]
    for truth, observation, num_frames in zip(truths, env.reset(), idle, strict=True):
        np.testing.assert_array_equal(observation, truth.start(num_frames, fire))
    num_games, totals = 0, np.zeros(2)
    for actions in random_actions(env, num_steps):
        idle = twin.step(actions)[4]["episode_frame_number"]
        observations, rewards, dones, infos = env.step(actions)
        for i, truth in enumerate(truths):
            observation, points, game_over, lost_life = truth.step(actions[i])
            totals[i] += points
            assert rewards[i] == points
            assert dones[i] == (game_over or lost_life)
            assert ("episode" in infos[i]) == game_over
            if dones[i]:
                np.testing.assert_array_equal(infos[i]["terminal_observation"], observation)
                assert infos[i]["TimeLimit.truncated"] is False
            if game_over:
                assert infos[i]["episode"]["r"] == totals[i]
                num_games, totals[i] = num_games + 1, 0
                observation = truth.start(idle[i], fire)
            np.testing.assert_array_equal(observations[i], observation)
    assert num_games >= min_games


# --- names ---------------------------------------------------------------------------------------------------------


def test_every_spelling_of_a_game_is_found():
    assert doctest.testmod(rlgns.agents.atari).failed == 0
    spellings = ["ms_pacman", "MsPacman", "ms-pacman", "Ms Pacman", "ALE/MsPacman-v5", "MsPacmanNoFrameskip-v4"]
    assert {find_game(name) for name in [*spellings, "MsPacmanDeterministic-v0"]} == {"ms_pacman"}


def test_every_game_is_found_by_its_own_name_and_by_gymnasiums():
    assert len(game_names()) > 100
    for game in game_names():
        assert find_game(game) == game
        assert find_game("ALE/" + "".join(word.capitalize() for word in game.split("_")) + "-v5") == game


@pytest.mark.parametrize(("name", "nearest"), [("brekout", "breakout"), ("packman", "ms_pacman"), ("Pongg-v5", "pong")])
def test_an_unknown_game_is_named_with_the_nearest_ones(name, nearest):
    with pytest.raises(
        ValueError, match=rf"unknown game '{name}'; did you mean .*{nearest}.*\? .*game_names\(\)"
    ) as error:
        AtariVecEnv(name, 1)
    assert "\n" not in str(error.value)


def test_games_that_would_end_the_process_are_refused():
    unsupported = {game for game in roms.get_all_rom_ids() if not ALEInterface.isSupportedROM(roms.get_rom_path(game))}
    assert set(game_names()) == set(roms.get_all_rom_ids()) - unsupported
    for game in unsupported:
        with pytest.raises(ValueError, match=f"unknown game '{game}'"):
            AtariVecEnv(game, 1)


def test_a_game_like_no_other_gets_no_suggestion():
    with pytest.raises(
        ValueError, match=r"unknown game .xxxxxxxxxxxx.; rlgns.agents.atari.game_names\(\) lists all \d+"
    ):
        find_game("xxxxxxxxxxxx")


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("num_envs", 0),
        ("num_envs", -1),
        ("num_threads", -1),
        ("frameskip", 0),
        ("stack_num", 0),
        ("noop_max", -1),
        ("max_num_frames_per_episode", 0),
        ("repeat_action_probability", 1.5),
        ("seed", -3),
        ("seed", 2**31),
    ],
)
def test_arguments_out_of_range_are_named_with_their_value_and_a_remedy(argument, value):
    with pytest.raises(ValueError, match=rf"^{argument} {value} .*; use \d"):
        AtariVecEnv("pong", **{"num_envs": 2, argument: value})


# --- the same game as gymnasium's ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("game", "num_steps", "min_games"), [("breakout", 700, 4), ("pong", 1000, 2), ("ms_pacman", 900, 2)]
)
def test_observations_rewards_and_ends_are_those_of_gymnasiums_single_environment(game, num_steps, min_games):
    assert_plays_like_the_slow_truth(game, num_steps, min_games)


def test_a_game_starts_with_fire_and_then_fewer_no_ops_than_noop_max():
    assert_plays_like_the_slow_truth("breakout", 300, 1, fire=True, noop_max=30)


def test_sticky_actions_are_those_of_the_single_emulator_with_the_same_seed():
    assert_plays_like_the_slow_truth("breakout", 300, 1, stickiness=0.25)


# --- ends ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("episodic_life", [True, False])
def test_reported_returns_are_the_sums_of_raw_points_over_whole_games_while_rewards_are_clipped(episodic_life):
    clipped = AtariVecEnv("ms_pacman", 2, seed=1, episodic_life=episodic_life)
    raw = AtariVecEnv("ms_pacman", 2, seed=1, episodic_life=episodic_life, reward_clipping=False)
    clipped.reset(), raw.reset()
    num_games, points_of_a_step, totals, lengths = 0, set(), np.zeros(2), np.zeros(2, int)
    for actions in random_actions(raw, 900):
        (_, signs, dones, infos), (_, points, raw_dones, _) = clipped.step(actions), raw.step(actions)
        np.testing.assert_array_equal(signs, np.sign(points))
        np.testing.assert_array_equal(dones, raw_dones)
        totals, lengths, points_of_a_step = totals + points, lengths + 1, points_of_a_step | set(points)
        for i, info in enumerate(infos):
            if "episode" in info:
                assert dones[i]
                assert (info["episode"]["r"], info["episode"]["l"]) == (totals[i], lengths[i])
                num_games, totals[i], lengths[i] = num_games + 1, 0, 0
    assert num_games >= 2
    assert max(points_of_a_step) >= 10


def test_a_lost_life_ends_the_learning_episode_but_not_the_game():
    env = AtariVecEnv("breakout", 1, seed=0)
    _, steps = play(env, 400)
    ends = [t for t, (_, _, dones, _) in enumerate(steps) if dones[0]]
    games = [t for t in ends if "episode" in steps[t][3][0]]
    assert len(games) >= 1
    assert ends.index(games[0]) == 4  # the fifth ball of Breakout is the last
    for t in ends[:4]:
        observations, _, _, (info,) = steps[t]
        assert info.keys() == {"terminal_observation", "TimeLimit.truncated"}
        assert info["TimeLimit.truncated"] is False
        np.testing.assert_array_equal(info["terminal_observation"], observations[0])  # the game goes on
        np.testing.assert_array_equal(steps[t + 1][0][0, :3], observations[0, 1:])  # and its frames stay stacked


def test_without_episodic_life_only_games_end():
    env = AtariVecEnv("breakout", 1, seed=0, episodic_life=False)
    ends = [infos[0] for _, _, dones, infos in play(env, 400)[1] if dones[0]]
    assert len(ends) >= 1
    assert all("episode" in info for info in ends)


def test_a_time_limit_is_a_truncation_with_its_final_observation_and_a_new_game():
    limited = AtariVecEnv("pong", 2, seed=0, max_num_frames_per_episode=80)
    free = AtariVecEnv("pong", 2, seed=0)
    first, steps = play(limited, 60)
    _, free_steps = play(free, 20)
    for t, (observations, _, dones, infos) in enumerate(steps):
        if (t + 1) % 20:
            assert not dones.any()
            assert infos == [{}, {}]
            continue
        for i, info in enumerate(infos):
            assert dones[i]
            assert info["TimeLimit.truncated"] is True
            assert info["episode"]["l"] == 20
            assert not observations[i, :3].any()  # a new game: no older frames
            np.testing.assert_array_equal(info["terminal_observation"][:3], steps[t - 1][0][i, 1:])
    # ale-py stops before it reads the last screen: its newest frame is a maximum of earlier ones, all others are true.
    for final, free_final in zip(steps[19][3], free_steps[19][0], strict=True):
        np.testing.assert_array_equal(final["terminal_observation"][:3], free_final[:3])
        assert np.mean(final["terminal_observation"][3] != free_final[3]) < 0.02
    assert first.shape == (2, 4, 84, 84)


def test_a_life_lost_at_the_time_limit_is_a_death_that_also_ends_the_game():
    def first_end(**limit):
        env = AtariVecEnv("breakout", 1, seed=0, noop_max=0, **limit)
        return next((t, obs, infos[0]) for t, (obs, _, dones, infos) in enumerate(play(env, 60)[1]) if dones[0])

    step, _, info = first_end()
    assert "episode" not in info
    outcomes = []
    for num_frames in range(4 * step + 1, 4 * step + 5):  # the life is lost in one of this step's four frames
        t, observations, info = first_end(max_num_frames_per_episode=num_frames)
        assert t == step
        assert info["episode"]["l"] == step + 1
        assert not observations[0, :3].any()
        outcomes.append(info["TimeLimit.truncated"])
    assert outcomes == sorted(outcomes, reverse=True)  # truncations before that frame, a death from it on
    assert outcomes[-1] is False


@pytest.mark.parametrize("start", [{"noop_max": 30}, UNMOVED])
@pytest.mark.parametrize("num_frames", [1, 5, 10])
def test_games_shorter_than_their_starts_are_all_counted(num_frames, start):
    env = AtariVecEnv("breakout", 3, seed=0, max_num_frames_per_episode=num_frames, **start)
    num_steps = -(-num_frames // 4)
    for t, (_, _, dones, infos) in enumerate(play(env, 30)[1]):
        last = (t + 1) % num_steps == 0
        assert dones.all() == dones.any() == last
        assert [info.get("episode", {}).get("l") for info in infos] == [num_steps if last else None] * 3


# --- shared memory ------------------------------------------------------------------------------------------------


def test_infos_do_not_share_state_with_each_other_or_with_observations():
    env = AtariVecEnv("breakout", 3, seed=0)
    for observations, _, dones, infos in play(env, 60)[1]:
        assert len({id(info) for info in infos}) == 3
        for info in infos:
            assert "mark" not in info
            info["mark"] = True
        for i in np.flatnonzero(dones):
            assert not np.shares_memory(infos[i]["terminal_observation"], observations)


def test_later_steps_do_not_write_into_arrays_returned_before():
    env = AtariVecEnv("breakout", 2, seed=0)
    first, steps = env.reset(), []
    first_copy = first.copy()
    for actions in random_actions(env, 150):
        step = env.step(actions)
        steps.append((step[:3], [array.copy() for array in step[:3]]))
    env.reset()
    env.close()
    np.testing.assert_array_equal(first, first_copy)
    for arrays, copies in steps:
        for array, copy in zip(arrays, copies, strict=True):
            np.testing.assert_array_equal(array, copy)


def test_arrays_have_the_shapes_and_types_that_sb3_expects():
    env = AtariVecEnv("Pong", 2, seed=0)
    first, ((observations, rewards, dones, infos),) = play(env, 1)
    assert (env.game, env.frameskip, env.num_envs) == ("pong", 4, 2)
    assert first[0] in env.observation_space
    assert (observations.shape, observations.dtype) == ((2, 4, 84, 84), np.uint8)
    assert (rewards.shape, rewards.dtype, dones.shape, dones.dtype) == ((2,), np.float32, (2,), np.bool_)
    assert infos == [{}, {}]
    assert env.action_space.n == 6
    assert AtariVecEnv("pong", 1, full_action_space=True).action_space.n == 18


# --- seeds ---------------------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_trajectories_whatever_the_number_of_threads():
    first, second = (AtariVecEnv("breakout", 3, seed=5, num_threads=n, repeat_action_probability=0.25) for n in (1, 2))
    trajectory = play(first, 250)
    assert_same(trajectory, play(second, 250))
    assert any("episode" in info for _, _, _, infos in trajectory[1] for info in infos)
    first.seed(5)
    assert_same(trajectory, play(first, 250))


def test_environment_i_plays_as_the_first_of_seed_plus_i():
    together = play(AtariVecEnv("breakout", 3, seed=10), 50, seed=1)
    alone = AtariVecEnv("breakout", 1, seed=12)
    np.testing.assert_array_equal(together[0][2], alone.reset()[0])
    for t, actions in enumerate(random_actions(AtariVecEnv("breakout", 3), 50, seed=1)):
        np.testing.assert_array_equal(together[1][t][0][2], alone.step(actions[2:])[0][0])


def test_no_op_starts_set_the_environments_apart_and_noop_max_0_does_not():
    starts = AtariVecEnv("breakout", 8, seed=0, noop_max=30)
    starts.reset()
    assert len({info["frame_number"] for info in starts.reset_infos}) >= 4
    assert max(info["frame_number"] for info in starts.reset_infos) < 30
    assert len(np.unique(starts.step(np.zeros(8, int))[0], axis=0)) > 1
    together = AtariVecEnv("breakout", 8, seed=0, **UNMOVED)
    assert len(np.unique(together.reset(), axis=0)) == 1


def test_a_seed_is_taken_at_the_next_reset_and_only_there():
    env = AtariVecEnv("pong", 2, seed=0)
    env.reset()
    first = [info["frame_number"] for info in env.reset_infos]
    assert env.seed(0) == [0, 1]
    env.step(np.zeros(2, int))
    env.reset()
    assert [info["frame_number"] for info in env.reset_infos] == first
    env.reset()
    assert [info["episode_frame_number"] for info in env.reset_infos] != first
    drawn = env.seed()
    assert drawn[1] == drawn[0] + 1
    env.reset()


# --- misuse --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("actions", [[0, 6], [-1, 0], [0], [[0, 0]], [0.0, 1.0]])
def test_actions_that_the_game_does_not_have_are_refused_and_do_no_harm(actions):
    env = AtariVecEnv("pong", 2, seed=0)
    env.reset()
    with pytest.raises(ValueError, match="actions"):
        env.step(np.array(actions))
    env.step(np.zeros(2, int))


def test_steps_out_of_order_are_refused():
    env = AtariVecEnv("pong", 2, seed=0)
    with pytest.raises(RuntimeError, match="reset"):
        env.step(np.zeros(2, int))
    first = env.reset()
    with pytest.raises(RuntimeError, match="step_async"):
        env.step_wait()
    env.step_async(np.zeros(2, int))
    with pytest.raises(RuntimeError, match="step_wait"):
        env.step_async(np.zeros(2, int))
    env.seed(0)
    np.testing.assert_array_equal(env.reset(), first)  # a reset discards an unfinished step


def test_a_closed_environment_says_so():
    env = AtariVecEnv("pong", 2, seed=0)
    env.reset()
    env.step_async(np.zeros(2, int))
    env.close()
    env.close()
    with pytest.raises(RuntimeError, match="closed"):
        env.step(np.zeros(2, int))
    with pytest.raises(RuntimeError, match="closed"):
        env.reset()


def test_what_c_emulators_cannot_do_is_refused_with_a_reason():
    env = AtariVecEnv("pong", 2)
    assert env.get_attr("game") == ["pong", "pong"]
    assert env.get_attr("frameskip", indices=0) == [4]
    assert env.env_is_wrapped(Monitor) == [True, True]
    assert env.env_is_wrapped(AtariPreprocessing, indices=[1]) == [False]
    assert env.has_attr("render_mode")
    assert not env.has_attr("spec")
    for refused in (lambda: env.set_attr("lives", 3), lambda: env.env_method("lives"), env.get_images):
        with pytest.raises(NotImplementedError, match=r"emulators|film"):
            refused()


# --- Stable-Baselines3 ---------------------------------------------------------------------------------------------


def test_sb3_learns_predicts_and_logs_whole_games_without_transposing():
    env = AtariVecEnv("pong", 4, max_num_frames_per_episode=40)
    model = A2C("CnnPolicy", env, n_steps=5, seed=0, device="cpu")
    assert is_image_space(env.observation_space)
    assert not is_vecenv_wrapped(model.get_env(), VecTransposeImage)
    assert model.get_env() is env
    model.learn(100)
    assert model.num_timesteps == 100
    assert [episode["l"] for episode in model.ep_info_buffer] == [10] * 8
    actions, _ = model.predict(env.reset())
    assert actions.shape == (4,)


def test_evaluate_policy_reports_unclipped_returns_of_whole_games():
    env = AtariVecEnv("ms_pacman", 2, seed=0)
    model = A2C("CnnPolicy", AtariVecEnv("ms_pacman", 2), seed=0, device="cpu")
    returns, lengths = evaluate_policy(model, env, n_eval_episodes=2, return_episode_rewards=True)
    assert all(episode_return % 10 == 0 for episode_return in returns)
    assert max(returns) >= 60
    assert min(lengths) > 100


def test_vec_normalize_and_vec_monitor_wrap_it():
    normalized = VecNormalize(AtariVecEnv("breakout", 2, seed=0), norm_obs=False)
    _, steps = play(normalized, 60)
    assert any(dones.any() for _, _, dones, _ in steps)
    with pytest.warns(UserWarning, match="already wrapped with a `Monitor`"):  # it would report lives as episodes
        monitored = VecMonitor(AtariVecEnv("breakout", 2, seed=0))
    for _, _, dones, infos in play(monitored, 60)[1]:
        assert [("episode" in info) for info in infos] == list(dones)


@pytest.mark.slow
def test_every_game_can_be_played():
    for game in game_names():
        env = AtariVecEnv(game, 1, seed=0)
        _, steps = play(env, 3)
        assert steps[-1][0][0] in env.observation_space, game
        env.close()
