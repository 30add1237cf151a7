"""Run every check that a change must pass: format, lint, types, tests.

The tests run in two processes. The quick numerical ones also run on emulated processors: with settings of PyTorch and
oneDNN that allow fewer instructions, sum in other orders, or use another number of threads. `--quick` leaves out the
emulated processors and the slow tests.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent

CHECKS = (
    ("ruff", "format", "--check", "."),
    ("ruff", "check", "."),
    ("mypy",),
)

TESTS = ("pytest", "-q", "--durations=10", "--dist=loadfile", "--no-loadscope-reorder")
"""Tests are distributed by file, because tests of a file share runs, in the order that `tests/conftest.py` sets."""

EMULATED = {
    "SSE 4.1, one thread": {
        "ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "OMP_NUM_THREADS": "1",
        "MKL_CBWR": "COMPATIBLE", "OPENBLAS_CORETYPE": "Nehalem",
    },
    "AVX2, two threads": {
        "ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "OMP_NUM_THREADS": "2",
        "OMP_WAIT_POLICY": "passive", "MKL_CBWR": "AVX2", "OPENBLAS_CORETYPE": "Haswell",
    },
}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Run every check, even after one has failed; the test suite comes last.

    Returns:
        The exit code: 0 if all checks passed, else 1.
    """
    options = parser().parse_args(arguments)
    workers = ("-n", str(options.workers))
    failed = [" ".join(check) for check in CHECKS if not passes(check)]
    for processor, variables in emulated(options.quick).items():
        check = (*TESTS, *workers, "-m", "numerical and not slow")
        if not passes(check, variables):
            failed.append(f"numerical tests on {processor}")
    if failed:
        print("failed:", "; ".join(failed), file=sys.stderr)
    tests_pass = passes((*TESTS, *workers, *(("-m", "not slow") if options.quick else ())))
    return int(bool(failed) or not tests_pass)


def parser() -> argparse.ArgumentParser:
    """The parser of the command's flags."""
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("--quick", action="store_true", help="leave out slow tests and emulated processors")
    result.add_argument("--workers", type=int, default=2, help="processes for the tests, default 2", metavar="N")
    return result


def passes(check: Sequence[str], variables: dict[str, str] | None = None) -> bool:
    """Print a command, run it, and return whether it succeeded.

    Args:
        check: A module and its arguments.
        variables: Environment variables to set.
    """
    settings = [f"{name}={value}" for name, value in (variables or {}).items()]
    print("$", " ".join([*settings, "python", "-m", *check]), flush=True)
    command = [sys.executable, "-m", *check]
    return not subprocess.run(command, cwd=ROOT, env={**os.environ, **(variables or {})}, check=False).returncode


def emulated(quick: bool) -> dict[str, dict[str, str]]:
    """Environment variables of the processors that can be emulated here, by name; none with `quick`."""
    import torch

    if quick:
        return {}
    has_avx2 = torch.backends.cpu.get_cpu_capability() not in {"DEFAULT", "NO AVX"}
    return {
        name: variables
        for name, variables in EMULATED.items()
        if has_avx2 or variables["ATEN_CPU_CAPABILITY"] != "avx2"
    }


if __name__ == "__main__":
    sys.exit(main())
