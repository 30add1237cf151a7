"""Command-line entry points of the supervised tasks.

Options are parsed before torch is imported, so that `--help` and errors in the options appear at once.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial

from rlgns.runs.exit_codes import exit_code_of
from rlgns.tasks.options import parse


def main(task: str, arguments: Sequence[str] | None = None) -> int:
    """Train a task with options from the command line.

    Args:
        task: Name of the task.
        arguments: Command-line arguments; `sys.argv[1:]` by default.

    Returns:
        An exit code as documented at `rlgns.runs.exit_codes.exit_code_of`.
    """
    return exit_code_of(lambda: _train(task, sys.argv[1:] if arguments is None else arguments))


digits, mnist, svhn, cifar10 = (partial(main, name) for name in ("digits", "mnist", "svhn", "cifar10"))
imagenet, billion_word = partial(main, "imagenet"), partial(main, "billion_word")
autoencoder, vae = partial(main, "autoencoder"), partial(main, "vae")


def _train(task: str, arguments: Sequence[str]) -> int:
    config = parse(task, arguments)
    from rlgns.tasks.supervised import run

    return run(task, config)
