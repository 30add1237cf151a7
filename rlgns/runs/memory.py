"""How much memory a machine has, and whether it holds what a run certainly needs.

Estimates are lower bounds, so that nothing is refused that could run; what exceeds the machine's whole memory would
only be killed by the operating system minutes later, without a word.
"""

from __future__ import annotations

import os
from pathlib import Path

LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
"""Where Linux says what a container may use."""


def machine_memory() -> int | None:
    """Bytes that this process may use at most: the machine's, or its container's; None where that is unknown."""
    try:
        physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None
    limits = [physical]
    for path in LIMITS:
        try:
            limits.append(int(path.read_text()))
        except (OSError, ValueError):  # not Linux, or "max"
            continue
    return min(limits)


def check_memory(needed: float, what: str, remedy: str) -> None:
    """Refuse what does not fit into this machine.

    Args:
        needed: Bytes, a lower bound.
        what: What needs them, with its values: "num_envs 16 of 128 steps".
        remedy: The flag to lower.

    Raises:
        ValueError: If it is more than the machine has.
    """
    available = machine_memory()
    if available is not None and needed > available:
        raise ValueError(f"{what} takes at least {_in_words(needed)} of memory, and this machine has "
                         f"{_in_words(available)}; {remedy}")  # fmt: skip


def _in_words(size: float) -> str:
    return f"{size / 2**30:,.3g} GiB" if size < 2**50 else "a million GiB or more"
