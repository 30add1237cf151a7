"""How is text that anybody may have written shown and passed on? Without control characters, and without keys."""

from __future__ import annotations

import re

_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f"  # control characters but tab, line feed and carriage return
    "\ud800-\udfff\ufffe\uffff"  # no characters at all; UTF-8 and XML have no way to write them
    "\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff]"  # invisible; they turn the direction in which a text is read
)


def printable(text: str) -> str:
    """The text with a mark (U+FFFD) in place of what is no character, or one that cannot be seen."""
    return _UNPRINTABLE.sub("\ufffd", text)


_SECRET = re.compile(r"(?i)([\w-]*(?:api[_-]?key|password|passwd|secret|[_-]token)(?:=|:\s*|\s+)[\"']?)[^\s\"',]+")


def redacted(text: str) -> str:
    """The text without keys and passwords, for records and pages, which are passed on.

    >>> redacted("env WANDB_API_KEY=0123abc rlgns train --hf-token hf_456 --seed 1")
    'env WANDB_API_KEY=[redacted] rlgns train --hf-token [redacted] --seed 1'
    """
    return _SECRET.sub(r"\1[redacted]", text)
