"""Everything that must hold before a change lands: format, lint, types, tests.

Tests run in two processes. The numerical ones run on other processors as well, emulated by the switches of PyTorch and
oneDNN: fewer instructions, other orders of summation, another number of threads. With `--quick` neither those nor the
slow tests run.
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
"""By file, since runs that many tests of a file read are made once; in the order that `tests/conftest.py` gives."""

EMULATED = {
    "SSE 4.1, one thread": {
        "ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "OMP_NUM_THREADS": "1",
        "MKL_CBWR": "COMPATIBLE", "OPENBLAS_CORETYPE": "Nehalem",
    },
    "AVX2, two threads": {
        "ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "OMP_NUM_THREADS": "2",
        "MKL_CBWR": "AVX2", "OPENBLAS_CORETYPE": "Haswell",
    },
}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Run every check, also after one has failed; 0 if all passed. The last words are those of the whole suite."""
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
    """Flags of the command."""
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("--quick", action="store_true", help="leave out slow tests and other processors")
    result.add_argument("--workers", type=int, default=2, help="processes for the tests, default 2", metavar="N")
    return result


def passes(check: Sequence[str], variables: dict[str, str] | None = None) -> bool:
    """Run a module with its arguments, after printing how; whether it succeeded."""
    settings = [f"{name}={value}" for name, value in (variables or {}).items()]
    print("$", " ".join([*settings, "python", "-m", *check]), flush=True)
    command = [sys.executable, "-m", *check]
    return not subprocess.run(command, cwd=ROOT, env={**os.environ, **(variables or {})}, check=False).returncode


def emulated(quick: bool) -> dict[str, dict[str, str]]:
    """Processors to run the numerical tests on besides this one: those whose instructions it has."""
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
