"""Atari games for Stable-Baselines3, stepped by ale-py's C++ threads.

`AtariVecEnv` wraps `ale_py.vector_env.AtariVectorEnv`, which preprocesses as Mnih et al. did (2015, doi
10.1038/nature14236): frame skip, maximum over the last two frames, 84×84 grey pixels, a stack of four, no-op starts.
Added here is the bookkeeping that a study of learning needs: returns of whole games in points while the learner sees
clipped rewards, lost lives that end learning episodes but not games, time limits that truncate and are never deaths.
"""

import difflib
import re
from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
from ale_py import roms
from ale_py.vector_env import AtariVectorEnv
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices

from rlgns.agents.emulators import EmulatedPart, Screens
from rlgns.agents.stepping import Info, Step

TWO_PLAYER_GAMES = {"combat", "joust", "maze_craze", "warlords"}
"""Games that ale-py cannot load: it ends the Python process that tries."""


def game_names() -> list[str]:
    """The sorted names of all one-player games that come with ale-py, in its spelling (`ms_pacman`)."""
    return sorted(set(roms.get_all_rom_ids()) - TWO_PLAYER_GAMES)


def find_game(name: str) -> str:
    """ale-py's name of a game, from any spelling.

    Args:
        name: The name of the game or of a Gymnasium environment that plays it.

    Returns:
        The name in ale-py's spelling.

    Raises:
        ValueError: With the nearest names, if there is no such game.

    >>> [find_game(name) for name in ("breakout", "MsPacman", "ms-pacman", "ALE/Pong-v5", "PongNoFrameskip-v4")]
    ['breakout', 'ms_pacman', 'ms_pacman', 'pong', 'pong']
    """
    games = {_letters(game): game for game in game_names()}
    wanted = _letters(re.sub(r"^ALE/|(NoFrameskip|Deterministic)?-v\d+$", "", name.strip(), flags=re.IGNORECASE))
    if wanted in games:
        return games[wanted]
    near = [games[letters] for letters in difflib.get_close_matches(wanted, games)]
    question = f"did you mean {' or '.join(near)}? " if near else ""
    raise ValueError(f"unknown game {name!r}; {question}rlgns.agents.atari.game_names() lists all {len(games)}")


def _letters(name: str) -> str:
    return re.sub(r"[\W_]", "", name).lower()


class AtariVecEnv(VecEnv):
    """N copies of one Atari game behind SB3's `VecEnv` interface.

    Observations are uint8 `[N, stack_num, 84, 84]`, oldest frame first, so that `CnnPolicy` takes them as they are. No
    later step writes into arrays that were returned. Rewards are float32 `[N]`: the game's points or their sign.

    A step that ends a learning episode sets `dones[i]`, and `infos[i]`, otherwise empty, then holds:

    * `terminal_observation`: the last observation of the episode; `observations[i]` is the first of the next one.
    * `TimeLimit.truncated`: True if nothing but the time limit ended the episode, so that the return has to be
      bootstrapped from its last observation.
    * `episode`: only if the whole game ended, {"r": undiscounted sum of unclipped points, "l": transitions, "t":
      seconds since construction}, as by SB3's `Monitor`, so that `evaluate_policy` sees whole games.

    A life lost on the very frame of the time limit is a death (not truncated) that also ends the game. After other
    lost lives the game goes on; unlike with SB3's wrappers, no FIRE or no-op is pressed, and the frames stay stacked.
    At a time limit ale-py stops before it reads the last screen: the newest frame there is the maximum of earlier ones.

    The environments are emulated in `num_parts` parts (`rlgns.agents.stepping`). Parts are stepped separately by `send`
    and `receive`, or all together by `step`; trajectories are the same.

    Attributes:
        game: ale-py's name of the game.
        frameskip: Emulator frames per transition.
        parts: The environments of each part.
        reset_infos: ale-py's counters at the last reset, a dict for each environment.
    """

    render_mode: str | None = None

    def __init__(
        self,
        game: str,
        num_envs: int,
        *,
        seed: int | None = None,
        num_threads: int = 0,
        num_parts: int = 1,
        frameskip: int = 4,
        stack_num: int = 4,
        noop_max: int = 30,
        repeat_action_probability: float = 0.0,
        episodic_life: bool = True,
        reward_clipping: bool = True,
        use_fire_reset: bool = True,
        max_num_frames_per_episode: int = 108_000,
        full_action_space: bool = False,
    ) -> None:
        """Start the emulators; arguments that ale-py has too have its names.

        Args:
            game: The game in any spelling that `find_game` understands.
            num_envs: Environments N, at least 1.
            seed: Environment i starts from `seed + i`; None: from the system's entropy.
            num_threads: Emulator threads of each part; 0: one per core, at most one an environment. Trajectories do not
                depend on it.
            num_parts: Parts of equally many environments; divides N.
            frameskip: Emulator frames per transition.
            stack_num: Frames per observation.
            noop_max: A game starts after a random number of idle frames below `noop_max` (FIRE included); with 0 or 1
                there are none.
            repeat_action_probability: Probability of ignoring the new action at each emulator frame; 0.25 are the
                sticky actions of Machado et al. (2018, arXiv 1709.06009), who recommend them over no-op starts.
            episodic_life: Whether a lost life ends the learning episode.
            reward_clipping: Whether the learner sees the sign of the points.
            use_fire_reset: Whether FIRE is pressed for one frame as a game starts, where the game has that button.
            max_num_frames_per_episode: Time limit of a game in emulator frames, without its idle start; the default is
                30 minutes at 60 Hz.
            full_action_space: Whether to offer all 18 actions instead of the game's own.

        Raises:
            ValueError: For unknown games and numbers out of range.
        """
        self.game = find_game(game)
        _require_at_least(1, num_envs=num_envs, frameskip=frameskip, stack_num=stack_num)
        _require_at_least(1, max_num_frames_per_episode=max_num_frames_per_episode)
        _require_at_least(0, num_threads=num_threads, noop_max=noop_max)
        _check_parts(num_parts, num_envs)
        if not 0 <= repeat_action_probability < 1:
            raise ValueError(f"repeat_action_probability {repeat_action_probability} is not in [0, 1); use 0 or 0.25")
        self.frameskip = frameskip
        size = num_envs // num_parts
        self.parts = tuple(slice(start, start + size) for start in range(0, num_envs, size))
        self._emulated: list[EmulatedPart] = [
            EmulatedPart(
                AtariVectorEnv(
                    self.game,
                    size,
                    num_threads=num_threads,
                    frameskip=frameskip,
                    stack_num=stack_num,
                    noop_max=noop_max,
                    repeat_action_probability=repeat_action_probability,
                    life_loss_info=episodic_life,
                    reward_clipping=False,  # EmulatedPart clips, after it has counted the points
                    use_fire_reset=use_fire_reset,
                    max_num_frames_per_episode=max_num_frames_per_episode,
                    full_action_space=full_action_space,
                    autoreset_mode=AutoresetMode.SAME_STEP,
                ),
                reward_clipping,
            )
            for _ in self.parts
        ]
        actions = spaces.Discrete(self._emulated[0].num_actions)
        super().__init__(num_envs, spaces.Box(0, 255, (stack_num, 84, 84), np.uint8), actions)
        if seed is not None:
            self.seed(seed)

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Set the seeds of the next reset; a reset without new seeds goes on with the same random generators.

        Args:
            seed: Environment i takes `seed + i`; None draws a fresh `seed`.

        Returns:
            The seeds `[seed, …, seed + N - 1]`.

        Raises:
            ValueError: If one of the seeds is not in [0, 2³¹).
        """
        largest = 2**31 - self.num_envs  # ale-py takes a C int and ignores a negative one
        if seed is None:
            seed = int(np.random.default_rng().integers(largest + 1))
        if not 0 <= seed <= largest:
            raise ValueError(f"seed {seed} is out of range for {self.num_envs} environments; use 0 to {largest}")
        return super().seed(seed)

    def reset(self) -> Screens:
        """Start new games; their first observations, `[N, stack_num, 84, 84]`."""
        observations, self.reset_infos = [], []
        for part, emulated in zip(self.parts, self._opened(), strict=True):
            seeds = None if self._seeds[0] is None else np.array(self._seeds[part])
            first, info = emulated.reset(seeds)
            observations.append(first)
            self.reset_infos += [{k: int(v[i]) for k, v in info.items()} for i in range(len(first))]
        self._reset_seeds()
        return np.concatenate(observations) if len(observations) > 1 else observations[0]

    def send(self, part: int, actions: npt.NDArray[np.integer[Any]]) -> None:
        """Let a part's emulators begin a step.

        Args:
            part: Number of the part.
            actions: Integers in [0, action_space.n), [n].

        Raises:
            ValueError: For other actions: ale-py would hang forever on an action that the game does not have.
            RuntimeError: If the part is still in a step, or the environments are closed.
        """
        actions, expected = np.asarray(actions), self.num_envs // len(self.parts)
        if actions.shape != (expected,) or actions.dtype.kind not in "iu":
            raise ValueError(f"actions are {actions.dtype} of shape {actions.shape}; pass {expected} integers")
        if actions.min() < 0 or actions.max() >= self.action_space.n:  # type: ignore[attr-defined]
            raise ValueError(
                f"actions {actions} are not all among {self.game}'s 0 to {self._opened()[part].num_actions - 1}"
            )
        self._opened()[part].send(actions.astype(np.int64, copy=False))

    def receive(self, part: int) -> Step:
        """Wait for the step of a part that `send` began; RuntimeError if there is none."""
        return self._opened()[part].receive()

    def step_async(self, actions: npt.NDArray[np.integer[Any]]) -> None:
        """Let all emulators begin a step with actions [N], as `send` does for one part, with the same errors."""
        actions = np.asarray(actions)
        if actions.shape != (self.num_envs,):
            raise ValueError(f"actions are {actions.dtype} of shape {actions.shape}; pass {self.num_envs} integers")
        for index, part in enumerate(self.parts):
            self.send(index, actions[part])

    def step_wait(self) -> tuple[Screens, npt.NDArray[np.float32], npt.NDArray[np.bool_], list[Info]]:
        """Observations, rewards, dones and infos of the step that `step_async` began, as described at the class."""
        steps = [self.receive(part) for part in range(len(self.parts))]
        if len(steps) == 1:
            return steps[0].observations, steps[0].rewards, steps[0].dones, steps[0].infos()
        observations, rewards, dones = (
            np.concatenate([getattr(step, name) for step in steps]) for name in ("observations", "rewards", "dones")
        )
        return observations, rewards, dones, [info for step in steps for info in step.infos()]

    def close(self) -> None:
        """Stop the emulator threads and free the emulators; a later `reset` or `step` raises `RuntimeError`."""
        self._emulated = []

    def _opened(self) -> list[EmulatedPart]:
        if not self._emulated:
            raise RuntimeError(f"this AtariVecEnv of {self.game} is closed; construct another one")
        return self._emulated

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """The attribute of this object, repeated for each of `indices`, since all environments share it."""
        return [getattr(self, attr_name) for _ in self._get_indices(indices)]

    def env_is_wrapped(self, wrapper_class: type[Any], indices: VecEnvIndices = None) -> list[bool]:
        """True for SB3's `Monitor`, whose reports of whole games this class makes; it knows no other wrapper."""
        return [wrapper_class is Monitor for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> NoReturn:
        """Raise NotImplementedError: the emulators are fixed once constructed."""
        raise NotImplementedError(f"cannot set {attr_name!r}: emulators are fixed; construct another AtariVecEnv")

    def env_method(self, method_name: str, *args: Any, indices: VecEnvIndices = None, **kwargs: Any) -> NoReturn:
        """Raise NotImplementedError: the environments live in C++."""
        raise NotImplementedError(f"cannot call {method_name!r}: the emulators are C++ and have no Python methods")

    def get_images(self) -> NoReturn:
        """Raise NotImplementedError: ale-py's vector environment does not return its screens."""
        raise NotImplementedError("no screens here; to film an agent, gymnasium.make(…, render_mode='rgb_array')")


def _require_at_least(minimum: int, **values: int) -> None:
    for name, value in values.items():
        if value < minimum:
            raise ValueError(f"{name} {value} is too small; use {minimum} or more")


def _check_parts(num_parts: int, num_envs: int) -> None:
    if num_parts < 1 or num_envs % num_parts:
        raise ValueError(f"num_parts {num_parts} does not divide num_envs {num_envs}; use 1, or 2 of an even number")
