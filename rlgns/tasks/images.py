"""How does an image become pixels of a given size? Anybody may have made its bytes: they are bounded before decoding.

A cell of an image column holds the bytes, or the path of a file that has them. A path is followed only to a regular
file beneath the data's own directory, and the size that a header announces is checked before anything is decoded: a
file of a few kilobytes may announce more pixels than a machine has memory for.
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
"""Pixels of an image, as it is stored and as it is scaled: 67 million, more than ImageNet's largest has."""

MAX_BYTES = 1 << 28
"""Bytes of an image's file."""

UInt8 = NDArray[np.uint8]


def quieten_decoder() -> None:
    """Let OpenCV write nothing on standard error: of a damaged image one line is enough, and that is ours."""
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


def bytes_of(cell: Any, roots: Sequence[Path]) -> bytes:
    """The content of an image's cell.

    Args:
        cell: Bytes and path of an image, one of them None.
        roots: Directories that the path may lead into.

    Raises:
        ValueError: If there is neither, or the path leads to anything but a regular file beneath the directories.

    """
    cell = cell if isinstance(cell, dict) else {}
    content, name = cell.get("bytes"), cell.get("path")
    if isinstance(content, bytes):
        return content
    if not isinstance(name, str):
        raise ValueError("there is no image")
    path = file_beneath(name, roots)
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"{name} has more than {MAX_BYTES:,} bytes")
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"{name} cannot be read ({error.strerror})") from None


def file_beneath(name: str | Path, roots: Sequence[Path]) -> Path:
    """The regular file of that name beneath one of the directories, links followed.

    Raises:
        ValueError: If there is none, be it that the path leads out of the directories or to a device.

    """
    for root in roots:
        try:
            path = (root / name).resolve(strict=True)
        except (OSError, RuntimeError, ValueError):  # absent, a circle of links, no path at all
            continue
        if path.is_file() and path.is_relative_to(root.resolve()):
            return path
    where = f" beneath {roots[0]}, where all files of the data must be" if roots else ""
    raise ValueError(f"{str(name)[:200]!r} is no regular file{where}")


def decoded(content: bytes, size: int, channels: int) -> UInt8:
    """The image scaled by its shorter side, with its middle cut out: [size, size, channels] in RGB or grey.

    Raises:
        ValueError: If it cannot be decoded, or is or becomes larger than MAX_PIXELS.

    """
    width, height = _announced_size(content)
    if width * height > MAX_PIXELS:
        raise ValueError(f"the image has {width:,} × {height:,} pixels; {MAX_PIXELS:,} are allowed")
    try:
        image = cv2.imdecode(
            np.frombuffer(content, np.uint8), cv2.IMREAD_GRAYSCALE if channels == 1 else cv2.IMREAD_COLOR_RGB
        )
    except cv2.error:
        image = None
    if image is None:
        raise ValueError("the image cannot be decoded; the file is damaged")
    height, width = image.shape[:2]
    if min(height, width) != size:
        scale = size / min(height, width)
        shape = max(size, round(width * scale)), max(size, round(height * scale))
        if shape[0] * shape[1] > MAX_PIXELS:
            raise ValueError(f"the image is too long, {width:,} × {height:,} pixels, to be scaled to {size} a side")
        image = cv2.resize(image, shape, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
        height, width = image.shape[:2]
    top, left = (height - size) // 2, (width - size) // 2
    cut: UInt8 = image[top : top + size, left : left + size].reshape(size, size, channels).astype(np.uint8)
    return cut


def _announced_size(content: bytes) -> tuple[int, int]:
    """Width and height as the header has them, without decoding; PNG and JPEG, nearly all there is, by hand."""
    if content.startswith(b"\x89PNG\r\n\x1a\n") and content[12:16] == b"IHDR" and len(content) >= 24:
        width, height = struct.unpack(">II", content[16:24])
        return width, height
    if content.startswith(b"\xff\xd8") and (found := _jpeg_size(content)):
        return found
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content)) as image:
            return image.size
    except Image.DecompressionBombError:
        raise ValueError(f"the image has more than {MAX_PIXELS:,} pixels") from None
    except Exception:  # a reader of foreign bytes fails in as many ways as there are bytes
        raise ValueError("the image cannot be decoded; its format is unknown, or the file is damaged") from None


def _jpeg_size(content: bytes) -> tuple[int, int] | None:
    """Of the first frame header (SOF0 to SOF15, ITU T.81, table B.1); None if there is none."""
    at = 2
    while at + 9 <= len(content):
        marker = content[at + 1]
        if content[at] != 0xFF or marker in (0x00, 0xFF):
            at += 1
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack(">HH", content[at + 5 : at + 9])
            return width, height
        elif marker == 0x01 or 0xD0 <= marker <= 0xD9:
            at += 2
        else:
            at += 2 + int.from_bytes(content[at + 2 : at + 4], "big")
    return None
