"""Settings of the C libraries below torch whose defaults slow a training loop down.

Where a library is not present (macOS, musl, another OpenMP) these functions do nothing.
"""

from __future__ import annotations

import ctypes
import os
from functools import cache
from pathlib import Path


def keep_freed_memory() -> None:
    """Make glibc keep the memory that torch frees.

    By default glibc returns it to the system, and every update faults it in again page by page. Keeping it makes A2C
    10 to 15 % faster on two cores, and more so where tensors exceed 32 MB, which glibc otherwise maps one by one
    whatever its thresholds are. The memory of the process stays at its peak.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    trim_threshold, top_pad, mmap_max = -1, -2, -4
    mallopt(mmap_max, 0)  # no separate mappings: all memory comes from the heap
    mallopt(trim_threshold, -1)  # never return the end of the heap to the system
    mallopt(top_pad, 64 << 20)


def release_cores() -> None:
    """End torch's idle OpenMP threads, which would spin for milliseconds on cores that the emulators need.

    The next operation of torch starts them again, in some 50 µs. This makes A2C 5 to 8 % faster on two cores.
    """
    openmp = _openmp()
    if openmp is not None:
        soft = 1
        openmp.omp_pause_resource_all(soft)


@cache
def _openmp() -> ctypes.CDLL | None:
    """The GNU OpenMP library that torch has loaded; None if there is none."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
        path = next((line.split(maxsplit=5)[5] for line in lines if "libgomp" in line), None)
        library = ctypes.CDLL(path) if path else None
    except OSError:
        return None
    return library if hasattr(library, "omp_pause_resource_all") else None


BUSY, VERY_BUSY = 1.25, 3.0
"""Programs that compute for each core, from which on a machine is called busy; the mean over a minute lags behind."""


def num_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def busy_words() -> str:
    """A sentence for a machine on which others compute more than its cores can; empty otherwise.

    The load is the mean over the last minute. Two programs that compute on all cores take turns, and with spinning
    threads training can fall to a tenth of its speed.
    """
    try:
        load = os.getloadavg()[0]
    except OSError:  # where the system does not know it
        return ""
    cores = num_cores()
    if load < BUSY * cores:
        return ""
    slower = "several times slower" if load >= VERY_BUSY * cores else "slower"
    return (
        f"note: other programs already compute on this machine (load {load:.1f} on {cores} cores); training may be "
        f"{slower} than alone, less so with OMP_WAIT_POLICY=PASSIVE"
    )
