"""Safe handling of text from untrusted sources: without control characters, and without keys and passwords."""

from __future__ import annotations

import re

_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f"  # control characters but tab, line feed and carriage return
    "\ud800-\udfff\ufffe\uffff"  # surrogates and noncharacters, which UTF-8 and XML cannot represent
    "\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff]"  # invisible marks that change the direction of a text
)


def printable(text: str) -> str:
    """The text with U+FFFD in place of control characters, invisible direction marks and invalid characters."""
    return _UNPRINTABLE.sub("\ufffd", text)


_SECRET = re.compile(r"(?i)([\w-]*(?:api[_-]?key|password|passwd|secret|[_-]token)(?:=|:\s*|\s+)[\"']?)[^\s\"',]+")


def redacted(text: str) -> str:
    """The text without keys and passwords, for records and pages that may be published.

    >>> redacted("env WANDB_API_KEY=0123abc rlgns train --hf-token hf_456 --seed 1")
    'env WANDB_API_KEY=[redacted] rlgns train --hf-token [redacted] --seed 1'
    """
    return _SECRET.sub(r"\1[redacted]", text)
