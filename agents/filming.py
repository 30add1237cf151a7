"""Environments that can be seen, and what shows them: videos, and a window.

A filmed Atari game is built of Gymnasium's wrappers around ale-py's single emulator. It gives the same observations as
`AtariVecEnv`, whose emulators keep their screens to themselves, and the screen in colour besides.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import numpy.typing as npt
from ale_py import ALEInterface, LoggerMode
from ale_py.env import AtariEnv
from gymnasium.wrappers import AtariPreprocessing, FrameStackObservation
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from rlgns.agents.atari import find_game
from rlgns.agents.config import ResolvedConfig
from rlgns.agents.environments import naming_what_is_missing
from rlgns.agents.observation_adapters import adapted
from rlgns.runs.files import replacing

Frame = npt.NDArray[np.uint8]
"""An image [height, width, 3]."""

EMULATOR_FRAMES_PER_SECOND = 60
LEAST_HEIGHT = 400
"""Smaller frames are enlarged by a whole factor until they are about as high."""


SDL_DRIVER, UNSEEN = "SDL_VIDEODRIVER", ("dummy", "offscreen")
"""The variable that chooses how pygame draws, and the ways that nobody sees."""


class Game(NamedTuple):
    """The return and the length of a whole game."""

    episode_return: float
    episode_length: int


class _IdleStart(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Starts a game with a random number of idle frames, of which the first may be FIRE, as ale-py does."""

    def __init__(self, environment: AtariEnv, noop_max: int, fires: bool) -> None:
        super().__init__(environment)
        meanings = environment.get_action_meanings()
        self._fire = [meanings.index("FIRE")] if fires and "FIRE" in meanings else []
        self._noop_max = noop_max

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(seed=seed, options=options)
        number = int(self.np_random.integers(max(self._noop_max, 1)))
        for action in [*self._fire, *[0] * (number - len(self._fire))]:
            observation, _, _, _, info = self.env.step(action)
        return observation, info


def filmed_environment(config: ResolvedConfig, seed: int) -> VecEnv:
    """One environment of a run that can be seen; rewards are not clipped, and lost lives end no episode.

    Args:
        config: Options of the run.
        seed: Seed of its next reset.

    Raises:
        ValueError: If it cannot be made, or does not render images.
    """
    if config.is_atari:
        environments: VecEnv = DummyVecEnv([lambda: Monitor(_atari(config))])
    else:
        with naming_what_is_missing(str(config.env)):
            environments = make_vec_env(
                str(config.env), n_envs=1, wrapper_class=adapted, env_kwargs={"render_mode": "rgb_array"}
            )
    if environments.render_mode != "rgb_array":
        environments.close()
        raise ValueError(f"environment '{config.task}' renders no images (rgb_array), so that it cannot be seen")
    environments.seed(seed)
    return environments


def _atari(config: ResolvedConfig) -> gymnasium.Env[Any, Any]:
    ALEInterface.setLoggerMode(LoggerMode.Error)  # no banner for every emulator
    emulator = AtariEnv(
        find_game(config.task),
        frameskip=1,
        repeat_action_probability=config.repeat_action_probability,
        max_num_frames_per_episode=config.max_num_frames_per_episode,
        render_mode="rgb_array",
    )
    started = _IdleStart(emulator, config.noop_max, config.use_fire_reset)
    game = AtariPreprocessing(started, noop_max=0, frame_skip=config.frameskip, screen_size=84)
    return FrameStackObservation(game, config.stack_num, padding_type="zero")


def frames_per_second(config: ResolvedConfig, environments: VecEnv) -> float:
    """Frames of a filmed environment in a second of its own time.

    Args:
        config: Options of the run.
        environments: The filmed environment.
    """
    if config.is_atari:
        return EMULATOR_FRAMES_PER_SECOND / config.frameskip
    return float((environments.get_attr("metadata")[0] or {}).get("render_fps") or 30)


def played(
    policy: BasePolicy, environments: VecEnv, number: int, deterministic: bool, show: Callable[[Frame], bool]
) -> Iterator[Game]:
    """Play whole games and show every frame.

    Args:
        policy: The policy, recurrent or not.
        environments: One environment, filmed.
        number: Number of games.
        deterministic: Whether the most likely actions are taken.
        show: Takes each frame; False ends the play.

    Yields:
        Every game as it ends.
    """
    observations = environments.reset()
    state, starts = None, np.ones(1, bool)
    while number:
        image = environments.get_images()[0]
        assert image is not None, "checked when it was made"
        if not show(_enlarged(image)):
            return
        actions, state = policy.predict(observations, state, starts, deterministic)  # type: ignore[arg-type]
        observations, _, starts, infos = environments.step(actions)
        if "episode" in infos[0]:
            number -= 1
            yield Game(float(infos[0]["episode"]["r"]), int(infos[0]["episode"]["l"]))


def _enlarged(image: npt.NDArray[Any]) -> Frame:
    """A frame of even height and width, which video formats ask for, large enough to see."""
    factor = max(1, round(LEAST_HEIGHT / image.shape[0]))
    frame = np.repeat(np.repeat(image, factor, axis=0), factor, axis=1).astype(np.uint8)
    return np.ascontiguousarray(frame[: frame.shape[0] // 2 * 2, : frame.shape[1] // 2 * 2])


@contextmanager
def video(path: Path, fps: float) -> Iterator[Callable[[Frame], bool]]:
    """A video file that takes frames; an interrupted one holds what was shown until then.

    Args:
        path: The file; its ending, .mp4 or .gif, chooses the format.
        fps: Frames per second.

    Yields:
        A function that appends a frame.

    Raises:
        OSError: If the file cannot be written; the error names it.
    """
    options: dict[str, Any] = {"fps": fps, "macro_block_size": 2, "ffmpeg_log_level": "error"}
    if path.suffix == ".gif":
        options = {"duration": 1000 / fps, "loop": 0}
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary, _writer(temporary, options) as writer:

        def append(frame: Frame) -> bool:
            writer.append_data(frame)
            return True

        yield append


def _writer(path: Path, options: dict[str, Any]) -> Any:
    import imageio.v2 as imageio

    return imageio.get_writer(path, **options)


def obstacle_to_windows() -> str:
    """Why no window can be opened here; empty if one can."""
    if sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        return "there is no display"
    try:
        import pygame

        pygame.display.init()
        driver = pygame.display.get_driver()
        pygame.display.quit()
    except ImportError:
        return "pygame, which opens windows, is not installed"
    except RuntimeError as error:  # pygame's own error is one
        return f"the display takes no window ({error})"
    unseen = driver in UNSEEN and os.environ.get(SDL_DRIVER) != driver
    return "the display takes no window" if unseen else ""


def draw_unseen() -> None:
    """Let environments that draw with pygame do so without looking for a display, which may print errors."""
    os.environ.setdefault(SDL_DRIVER, "dummy")


@contextmanager
def window(title: str, fps: float) -> Iterator[Callable[[Frame], bool]]:
    """A window that shows frames at their pace; closing it, or Escape, ends the play.

    Args:
        title: Title of the window.
        fps: Frames per second.

    Yields:
        A function that shows a frame and tells whether to go on.

    Raises:
        ImportError: If pygame is not installed.
        RuntimeError: If the display does not take a window.
    """
    import pygame

    pygame.display.init()
    clock = pygame.time.Clock()

    def show(frame: Frame) -> bool:
        height, width, _ = frame.shape
        screen = pygame.display.get_surface() or pygame.display.set_mode((width, height))
        pygame.surfarray.blit_array(screen, frame.swapaxes(0, 1))
        pygame.display.set_caption(title)
        pygame.display.flip()
        clock.tick(fps)
        events = pygame.event.get()
        return not any(e.type == pygame.QUIT or (e.type == pygame.KEYDOWN and e.key == pygame.K_ESCAPE) for e in events)

    try:
        yield show
    finally:
        pygame.display.quit()
