"""Everything that must hold before a change lands: format, lint, types, tests. `--quick` leaves the slow tests out."""

import argparse
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent

CHECKS = (
    ("ruff", "format", "--check", "."),
    ("ruff", "check", "."),
    ("mypy",),
    ("pytest", "-q", "--durations=10"),
)


def main() -> int:
    """Run every check, also after one has failed; 0 if all passed. The tests come last."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="leave the slow tests out")
    quick = ("-m", "not slow") if parser.parse_args().quick else ()
    failed = []
    for module, *arguments in CHECKS:
        command = [sys.executable, "-m", module, *arguments, *(quick if module == "pytest" else ())]
        print("$", " ".join(["python", *command[1:]]), flush=True)
        if subprocess.run(command, cwd=ROOT, check=False).returncode:
            failed.append(" ".join([module, *arguments]))
    if failed:
        print("failed:", "; ".join(failed), file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
