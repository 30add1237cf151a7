"""Atari games for Stable-Baselines3, stepped by ale-py's C++ threads.

`AtariVecEnv` wraps `ale_py.vector_env.AtariVectorEnv`, which preprocesses as Mnih et al. did (2015, doi
10.1038/nature14236): frame skip, maximum over the last two frames, 84×84 grey pixels, a stack of four, no-op starts.
Added here is the bookkeeping that a study of learning needs: returns of whole games in points while the learner sees
clipped rewards, lives that end learning episodes but no games, time limits that are truncations and never deaths.
"""

import difflib
import re
import time
from collections.abc import Sequence
from typing import Any, NoReturn, cast

import numpy as np
import numpy.typing as npt
from ale_py import roms
from ale_py.vector_env import AtariVectorEnv
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices

from rlgns.agents.stepping import Info, Step

Observations = npt.NDArray[np.uint8]
Counters = dict[str, npt.NDArray[Any]]

TWO_PLAYERS = {"combat", "joust", "maze_craze", "warlords"}  # ale-py ends the Python process that loads one of these


def game_names() -> list[str]:
    """Names of all games for one player that ale-py brings along, as it spells them (`ms_pacman`), sorted."""
    return sorted(set(roms.get_all_rom_ids()) - TWO_PLAYERS)


def find_game(name: str) -> str:
    """ale-py's name of the game that `name` means; `ValueError` with the nearest names if there is none.

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

    Observations are uint8 `[N, stack_num, 84, 84]`, oldest frame first, so `CnnPolicy` takes them as they are. Arrays
    are the caller's own: no later step writes into them. Rewards are float32 `[N]`: the game's points or their sign.

    A step that ends a learning episode says so by `dones[i]`, and `infos[i]`, else empty, then holds
      terminal_observation  the last observation of the episode; `observations[i]` is the first of the next one
      TimeLimit.truncated   True if nothing but the time limit ended the episode: bootstrap from its last observation
      episode               only if the whole game ended: {"r": undiscounted sum of unclipped points, "l": transitions,
                            "t": seconds since construction}, as by SB3's `Monitor`: `evaluate_policy` sees whole games
    A life lost on the very frame of the time limit is a death (not truncated) that also ends the game. After other
    lost lives the game goes on, unlike with SB3's wrappers without a FIRE or a no-op and with the frames still stacked.
    At a time limit ale-py stops before it reads the last screen: the newest frame there is the maximum of earlier ones.

    The environments are emulated in `num_parts` parts (`rlgns.agents.stepping`). Parts step on their own by `send` and
    `receive`, or all together by `step`; trajectories are the same.

    Arguments (ale-py's own names; `ValueError` for unknown games and numbers out of range):
      game, num_envs  any spelling that `find_game` understands; N, at least 1
      seed         environment i starts from `seed + i`; None: from the system's entropy
      num_threads  emulator threads of each part; 0: one per core, at most one an environment. Trajectories do not
                   depend on it
      num_parts    parts of as many environments each; divides N
      frameskip, stack_num  emulator frames per transition; frames per observation
      noop_max     a game starts after a random number of idle frames below `noop_max` (FIRE included); 0, 1: no idling
      repeat_action_probability  of ignoring the new action, at each emulator frame; 0.25 are the sticky actions of
                   Machado et al. (2018, arXiv 1709.06009), who recommend them instead of no-op starts
      episodic_life, reward_clipping  a lost life ends the learning episode; the learner sees the sign of the points
      use_fire_reset  FIRE is pressed for one frame as a game starts, where the game has that button
      max_num_frames_per_episode  time limit of a game in emulator frames, its idle start not counted (30 min at 60 Hz)
      full_action_space  all 18 actions instead of the game's own
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
        self.game = find_game(game)
        _require_at_least(1, num_envs=num_envs, frameskip=frameskip, stack_num=stack_num)
        _require_at_least(1, max_num_frames_per_episode=max_num_frames_per_episode)
        _require_at_least(0, num_threads=num_threads, noop_max=noop_max)
        if not 0 <= repeat_action_probability < 1:
            raise ValueError(f"repeat_action_probability {repeat_action_probability} is not in [0, 1); use 0 or 0.25")
        if num_parts < 1 or num_envs % num_parts:
            raise ValueError(
                f"num_parts {num_parts} does not divide num_envs {num_envs}; use 1, or 2 of an even number"
            )
        self.frameskip = frameskip
        size = num_envs // num_parts
        self.parts = tuple(slice(start, start + size) for start in range(0, num_envs, size))
        self._emulated: list[_Part] = [
            _Part(
                AtariVectorEnv(
                    self.game,
                    size,
                    num_threads=num_threads,
                    frameskip=frameskip,
                    stack_num=stack_num,
                    noop_max=noop_max,
                    repeat_action_probability=repeat_action_probability,
                    life_loss_info=episodic_life,
                    reward_clipping=False,  # in the part, after the points were counted
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
        """Seeds `[seed, …, seed + N - 1]` that the environments take at their next reset; None draws a fresh `seed`.

        A reset without a new seed goes on with the same generators. Raises `ValueError` if a seed is not in [0, 2³¹).
        """
        largest = 2**31 - self.num_envs  # ale-py takes a C int and ignores a negative one
        if seed is None:
            seed = int(np.random.default_rng().integers(largest + 1))
        if not 0 <= seed <= largest:
            raise ValueError(f"seed {seed} is out of range for {self.num_envs} environments; use 0 to {largest}")
        return super().seed(seed)

    def reset(self) -> Observations:
        """First observations `[N, stack_num, 84, 84]` of new games; `reset_infos` holds ale-py's counters for each."""
        observations, self.reset_infos = [], []
        for part, emulated in zip(self.parts, self._opened(), strict=True):
            seeds = None if self._seeds[0] is None else np.array(self._seeds[part])
            first, counters = emulated.reset(seeds)
            observations.append(first)
            self.reset_infos += [{k: int(v[i]) for k, v in counters.items()} for i in range(len(first))]
        self._reset_seeds()
        return np.concatenate(observations) if len(observations) > 1 else observations[0]

    def send(self, part: int, actions: npt.NDArray[np.integer[Any]]) -> None:
        """Hand a part's actions [n], integers in [0, action_space.n), to its emulators; ValueError for others."""
        actions, expected = np.asarray(actions), self.num_envs // len(self.parts)
        # ale-py hangs for ever on an action that the game does not have.
        if actions.shape != (expected,) or actions.dtype.kind not in "iu":
            raise ValueError(f"actions are {actions.dtype} of shape {actions.shape}; pass {expected} integers")
        if actions.min() < 0 or actions.max() >= self.action_space.n:  # type: ignore[attr-defined]
            raise ValueError(
                f"actions {actions} are not all among {self.game}'s 0 to {self._opened()[part].num_actions - 1}"
            )
        self._opened()[part].send(actions.astype(np.int64, copy=False))

    def receive(self, part: int) -> Step:
        """What the step gave that `send` began; the class says what a step's end of an episode means."""
        return self._opened()[part].receive()

    def step_async(self, actions: npt.NDArray[np.integer[Any]]) -> None:
        """Hand `actions` [N], integers in [0, action_space.n), to the emulators; `ValueError` for anything else."""
        actions = np.asarray(actions)
        if actions.shape != (self.num_envs,):
            raise ValueError(f"actions are {actions.dtype} of shape {actions.shape}; pass {self.num_envs} integers")
        for part, of_part in enumerate(self.parts):
            self.send(part, actions[of_part])

    def step_wait(self) -> tuple[Observations, npt.NDArray[np.float32], npt.NDArray[np.bool_], list[Info]]:
        """Observations, rewards, dones and infos of the step that `step_async` began; the class says what they mean."""
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

    def _opened(self) -> "list[_Part]":
        if not self._emulated:
            raise RuntimeError(f"this AtariVecEnv of {self.game} is closed; construct another one")
        return self._emulated

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """The attribute of this object, once for each of `indices`: the emulators all share it."""
        return [getattr(self, attr_name) for _ in self._get_indices(indices)]

    def env_is_wrapped(self, wrapper_class: type[Any], indices: VecEnvIndices = None) -> list[bool]:
        """True for SB3's `Monitor`, whose reports of whole games are made here; there are no other wrappers."""
        return [wrapper_class is Monitor for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> NoReturn:
        """Not possible: the emulators are fixed once constructed."""
        raise NotImplementedError(f"cannot set {attr_name!r}: emulators are fixed; construct another AtariVecEnv")

    def env_method(self, method_name: str, *args: Any, indices: VecEnvIndices = None, **kwargs: Any) -> NoReturn:
        """Not possible: the environments live in C++."""
        raise NotImplementedError(f"cannot call {method_name!r}: the emulators are C++ and have no Python methods")

    def get_images(self) -> NoReturn:
        """Not possible: ale-py's vector environment does not hand out its screens."""
        raise NotImplementedError("no screens here; to film an agent, gymnasium.make(…, render_mode='rgb_array')")


class _Part:
    """The emulators of one part, with the bookkeeping of their games."""

    def __init__(self, emulators: AtariVectorEnv, reward_clipping: bool) -> None:
        self._emulators = emulators
        self._reward_clipping = reward_clipping
        self.num_actions = len(emulators.ale.get_action_set())
        self._waiting = False
        self._constructed_at = time.perf_counter()
        self._returns = np.zeros(emulators.num_envs, np.int64)
        self._lengths = np.zeros(emulators.num_envs, np.int64)
        self._starts = np.zeros(emulators.num_envs, np.int32)

    def reset(self, seeds: npt.NDArray[np.int64] | None) -> tuple[Observations, Counters]:
        if self._waiting:
            self.receive()
        observations, counters = self._emulators.reset(seed=seeds)
        self._returns[:] = self._lengths[:] = 0
        self._starts = _game_starts(counters)
        return cast(Observations, observations), counters

    def send(self, actions: npt.NDArray[np.int64]) -> None:
        if self._waiting:
            raise RuntimeError("the last actions are still being played; call step_wait() before the next step_async()")
        self._emulators.send(actions)
        self._waiting = True

    def receive(self) -> Step:
        if not self._waiting:
            raise RuntimeError("no actions are being played; call step_async() before step_wait()")
        observations, points, terminated, truncated, counters = self._emulators.recv()
        self._waiting = False
        self._returns += points
        self._lengths += 1
        dones = terminated | truncated
        starts = _game_starts(counters)
        game_ended = starts != self._starts
        ended = np.flatnonzero(dones)
        rewards = np.sign(points) if self._reward_clipping else points
        step = Step(
            observations=observations,
            rewards=rewards.astype(np.float32),
            dones=dones,
            truncated=truncated & ~terminated,
            restarted=game_ended,
            # ale-py fills final_obs only where a new game began; after a lost life the old one simply goes on.
            last_observations={
                int(i): (counters["final_obs"] if game_ended[i] else observations)[i].copy() for i in ended
            },
            episodes={int(i): self._episode(i) for i in ended if game_ended[i]},
        )
        self._returns[game_ended] = self._lengths[game_ended] = 0
        self._starts = starts
        return step

    def _episode(self, i: np.intp) -> Info:
        seconds = round(time.perf_counter() - self._constructed_at, 6)
        return {"r": float(self._returns[i]), "l": int(self._lengths[i]), "t": seconds}


def _game_starts(counters: Counters) -> npt.NDArray[np.int32]:
    """Emulator frame at which each current game started [N]: it changes when, and only when, a game ended.

    `episode_frame_number` falling is not enough: a short game can be followed by a longer no-op start.
    """
    return cast(npt.NDArray[np.int32], counters["frame_number"] - counters["episode_frame_number"])


def _require_at_least(minimum: int, **values: int) -> None:
    for name, value in values.items():
        if value < minimum:
            raise ValueError(f"{name} {value} is too small; use {minimum} or more")
