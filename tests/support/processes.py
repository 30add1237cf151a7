"""The processes that tests start: their environment, and how long they are waited for.

A test's process must compute as the test does, on the processor that is there or on the one that is emulated, and must
not see the settings of whoever runs the tests: no ranks, no W&B key, no proxy. So it inherits what follows and no more.
"""

import os
import time
from collections.abc import Callable

PYTHON = ("PATH", "VIRTUAL_ENV", "HOME", "LANG", "TMPDIR", "LD_LIBRARY_PATH", "PYTHONPATH")
"""What an interpreter needs to find itself, its packages and its files."""

PROCESSOR = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "NPY_DISABLE_CPU_FEATURES")
PROCESSOR_PREFIXES = ("OMP_", "KMP_", "MKL_", "OPENBLAS_")
"""What decides which kernels compute, in how many threads."""

ONE_THREAD = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
"""What holds where the machine says nothing: networks are small here, and cores are shared with other tests."""


def child_environment(**variables: object) -> dict[str, str]:
    """Environment of a process that a test starts.

    Args:
        variables: What the test sets itself; it wins over what is inherited.

    Returns:
        What Python needs, what selects the processor's kernels, and `variables`.
    """
    inherited = {
        name: value
        for name, value in os.environ.items()
        if name in PYTHON or name in PROCESSOR or name.startswith(PROCESSOR_PREFIXES)
    }
    return ONE_THREAD | inherited | {name: str(value) for name, value in variables.items()}


HANG = 900.0
"""Seconds after which what has not happened hangs. Where all is well no test waits so long, on the slowest machine."""


def wait_until(condition: Callable[[], bool], seconds: float = HANG) -> None:
    """Return as soon as `condition` holds.

    Args:
        condition: Asked every 20 ms.
        seconds: Limit for what hangs.

    Raises:
        TimeoutError: It does not hold within `seconds`.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"nothing has come within {seconds:g} seconds")
        time.sleep(0.02)


def num_threads() -> int:
    """Threads of torch in the tests and the processes that they start."""
    return int(os.environ.get("OMP_NUM_THREADS", "1"))
