"""Reader of videos, so that tests look at the frames that were really written."""

import subprocess
from pathlib import Path

import imageio_ffmpeg
import numpy as np


def read_video(path: Path, height: int, width: int) -> np.ndarray:
    """The frames of a video [F, height, width, 3]; an error if they have another size."""
    decode = (
        "-loglevel",
        "error",
        "-i",
        str(path),
        "-f",
        "rawvideo",
        "-pix_fmt",
        "rgb24",
        "-fps_mode",
        "passthrough",
        "-",
    )
    content = subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), *decode], capture_output=True, check=True).stdout
    return np.frombuffer(content, np.uint8).reshape(-1, height, width, 3)
