"""Check of a run's memory needs against the memory of the machine.

Estimates are lower bounds, so that no run is refused that would fit. A run that needs more than the whole memory would
be killed by the operating system minutes later without a message.
"""

from __future__ import annotations

import os
from pathlib import Path

LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
"""Files in which Linux states the memory limit of a container, in bytes."""


def machine_memory() -> int | None:
    """The memory of the machine or of the container in bytes, whichever is smaller; None if it is unknown."""
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
    """Refuse a run that does not fit into the memory of this machine.

    Args:
        needed: Lower bound of the needed memory in bytes.
        what: Description of what needs it, with its values: "a rollout of num_envs 16 × num_steps 128".
        remedy: What to do about it, with the flag to change: "use a smaller --num-envs".

    Raises:
        ValueError: If more memory is needed than the machine has.
    """
    available = machine_memory()
    if available is not None and needed > available:
        raise ValueError(f"{what} takes at least {_size_in_words(needed)} of memory, and this machine has "
                         f"{_size_in_words(available)}; {remedy}")  # fmt: skip


def _size_in_words(size: float) -> str:
    return f"{size / 2**30:,.3g} GiB" if size < 2**50 else "a million GiB or more"
