"""Run every check that a change must pass: format, lint, types, tests.

The tests run in three processes, because many of them wait; the quick ones, which do not, in two. The quick numerical
ones also run on emulated processors: with settings of PyTorch and oneDNN that allow fewer instructions, sum in other
orders, or use another number of threads. `--quick` leaves out the emulated processors, the slow tests, and those that
took more than a second when `--record` last wrote down which do.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parent.parent

CHECKS = (
    ("ruff", "format", "--check", "."),
    ("ruff", "check", "."),
    ("mypy",),
)

TESTS = ("pytest", "-q", "--durations=10", "--dist=loadfile", "--no-loadscope-reorder")
"""Tests are distributed by file, because tests of a file share runs, in the order that `tests/conftest.py` sets."""

OVER_A_SECOND = ROOT / "tests" / "over_a_second.txt"
"""Names of test functions, one a line, of which a case took more than a second; `tests/conftest.py` marks them."""

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
    workers = ("-n", str((2 if options.quick else 3) if options.workers is None else options.workers))
    failed = [" ".join(check) for check in CHECKS if not passes(check)]
    for processor, variables in emulated(options.quick).items():
        check = (*TESTS, *workers, "-m", "numerical and not slow")
        if not passes(check, variables):
            failed.append(f"numerical tests on {processor}")
    if failed:
        print("failed:", "; ".join(failed), file=sys.stderr)
    tests = (*TESTS, *workers)
    if options.quick:
        tests_pass = passes((*tests, "-m", "not slow and not over_a_second"))
    elif options.record:
        tests_pass = passes_and_records(tests)
    else:
        tests_pass = passes(tests)
    return int(bool(failed) or not tests_pass)


def passes_and_records(tests: Sequence[str]) -> bool:
    """Run all tests, write down which take more than a second if they succeed, and return whether they do."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        succeeded = passes((*tests, f"--junitxml={report}"))
        cases = ElementTree.parse(report).iter("testcase")
        names = {
            f"{case.get('classname', '').replace('.', '/')}.py::{case.get('name', '').partition('[')[0]}"
            for case in cases
            if float(case.get("time", 0)) > 1
        }
    if succeeded:
        OVER_A_SECOND.write_text("".join(f"{name}\n" for name in sorted(names)))
    return succeeded


def parser() -> argparse.ArgumentParser:
    """The parser of the command's flags."""
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = result.add_mutually_exclusive_group()
    kinds.add_argument("--quick", action="store_true", help="leave out emulated processors and long tests")
    kinds.add_argument("--record", action="store_true", help="write down which tests take over a second")
    result.add_argument("--workers", type=int, help="processes for the tests, default 3, with --quick 2", metavar="N")
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
