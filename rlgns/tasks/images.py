"""Decoding of stored images to pixel arrays of a fixed size, with bounds that are checked before decoding.

Image files come from anywhere. A cell of an image column holds the encoded bytes, or the path of a file with them. A
path is followed only to a regular file within the data's own directory, and the size in the image's header is checked
before anything is decoded: a file of a few kilobytes may announce more pixels than a machine has memory for.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

MAX_PIXELS = 1 << 26
"""Largest number of pixels of an image, as stored and as scaled: 67 million, more than ImageNet's largest image has."""

MAX_BYTES = 1 << 28
"""Largest size of an image file in bytes."""

PixelArray = NDArray[np.uint8]


def silence_opencv() -> None:
    """Keep OpenCV from writing to standard error; this module reports a damaged image in one line of its own."""
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


def read_image_cell(cell: Any, roots: Sequence[Path]) -> bytes:
    """Read the encoded bytes of an image from a cell of a data set.

    Args:
        cell: Mapping with "bytes" and "path", one of which is None.
        roots: Directories within which the path may lie.

    Returns:
        The content of the image file.

    Raises:
        ValueError: If the cell holds neither bytes nor a path, or the path does not lead to a readable regular file of
            at most `MAX_BYTES` within the directories.
    """
    cell = cell if isinstance(cell, dict) else {}
    content, name = cell.get("bytes"), cell.get("path")
    if isinstance(content, bytes):
        return content
    if not isinstance(name, str):
        raise ValueError("the cell holds no image")
    path = regular_file_within(name, roots)
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"{name} has more than {MAX_BYTES:,} bytes")
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"{name} cannot be read ({error.strerror})") from None


def regular_file_within(name: str | Path, roots: Sequence[Path]) -> Path:
    """Resolve a file name to a regular file within one of the directories, symbolic links followed.

    Args:
        name: Path of the file, absolute or relative to one of the directories.
        roots: Directories that may hold the file.

    Returns:
        The resolved path.

    Raises:
        ValueError: If there is no such file, for instance because the path leads out of the directories or to a device.
    """
    for root in roots:
        try:
            path = (root / name).resolve(strict=True)
        except (OSError, RuntimeError, ValueError):  # no such file, a circle of links, not a path at all
            continue
        if path.is_file() and path.is_relative_to(root.resolve()):
            return path
    where = f" beneath {roots[0]}, where all files of the data must lie" if roots else ""
    raise ValueError(f"{str(name)[:200]!r} is not a regular file{where}")


def decode_image(content: bytes, size: int, channels: int) -> PixelArray:
    """Decode an image, scale its shorter side to `size` and crop the centre.

    Args:
        content: The encoded image.
        size: Height and width of the result.
        channels: 1 for greyscale, 3 for RGB.

    Returns:
        Pixels [size, size, channels].

    Raises:
        ValueError: If the image cannot be decoded, or has more than `MAX_PIXELS` as stored or as scaled.
    """
    width, height = _size_in_header(content)
    if width * height > MAX_PIXELS:
        raise ValueError(f"the image has {width:,} × {height:,} pixels; {MAX_PIXELS:,} are allowed")
    mode = cv2.IMREAD_GRAYSCALE if channels == 1 else cv2.IMREAD_COLOR_RGB
    try:
        image = cv2.imdecode(np.frombuffer(content, np.uint8), mode)
    except cv2.error:
        image = None
    if image is None:
        raise ValueError("the image cannot be decoded; the file is damaged")
    return _centre_crop(_scale_shorter_side(image, size), size, channels)


def _scale_shorter_side(image: Any, size: int) -> Any:
    """The image [H, W] or [H, W, C] scaled so that its shorter side has `size` pixels."""
    height, width = image.shape[:2]
    if min(height, width) == size:
        return image
    scale = size / min(height, width)
    shape = max(size, round(width * scale)), max(size, round(height * scale))
    if shape[0] * shape[1] > MAX_PIXELS:
        raise ValueError(f"the image is too long, {width:,} × {height:,} pixels, to be scaled to {size} a side")
    return cv2.resize(image, shape, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)


def _centre_crop(image: Any, size: int, channels: int) -> PixelArray:
    height, width = image.shape[:2]
    top, left = (height - size) // 2, (width - size) // 2
    crop: PixelArray = image[top : top + size, left : left + size].reshape(size, size, channels).astype(np.uint8)
    return crop


def _size_in_header(content: bytes) -> tuple[int, int]:
    """Width and height as stated in the header, without decoding.

    The headers of PNG and JPEG, the formats of nearly all data sets, are parsed here, those of other formats by Pillow.
    """
    if content.startswith(b"\x89PNG\r\n\x1a\n") and content[12:16] == b"IHDR" and len(content) >= 24:
        width, height = struct.unpack(">II", content[16:24])
        return width, height
    if content.startswith(b"\xff\xd8") and (size := _jpeg_size(content)):
        return size
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content)) as image:
            return image.size
    except Image.DecompressionBombError:
        raise ValueError(f"the image has more than {MAX_PIXELS:,} pixels") from None
    except Exception:  # Pillow's readers raise many kinds of exceptions on malformed bytes
        raise ValueError("the image cannot be decoded; its format is unknown, or the file is damaged") from None


def _jpeg_size(content: bytes) -> tuple[int, int] | None:
    """Width and height in the first frame header (SOF0 to SOF15, ITU T.81, table B.1); None if there is none."""
    position = 2
    while position + 9 <= len(content):
        marker = content[position + 1]
        if content[position] != 0xFF or marker in (0x00, 0xFF):
            position += 1
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack(">HH", content[position + 5 : position + 9])
            return width, height
        elif marker == 0x01 or 0xD0 <= marker <= 0xD9:
            position += 2
        else:
            position += 2 + int.from_bytes(content[position + 2 : position + 4], "big")
    return None
