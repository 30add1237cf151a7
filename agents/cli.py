"""The command line of the main job: what goes wrong becomes one line and an exit code."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from agents.options import parse


def main(arguments: Sequence[str] | None = None) -> int:
    """Train as the arguments say.

    Exit codes: 0 done; 1 the run failed (it diverged, or the disk is full); 2 usage; 130 and 143 stopped by SIGINT and
    SIGTERM.
    """
    try:
        config = parse(sys.argv[1:] if arguments is None else arguments)
        from agents.task import run

        return run(config)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error.strerror or error}: {error.filename}; what was recorded stays", file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # before training began
        return 130
