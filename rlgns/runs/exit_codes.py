"""What a failure means to the shell: one line on standard error and an exit code, the same for every command."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable


def exit_code_of(work: Callable[[], int]) -> int:
    """What `work` returns, or what its failure means; every failure is one line on standard error.

    0 done; 1 it failed, or the disk is full; 2 usage (ValueError); 130 and 143 stopped by SIGINT and SIGTERM; 141, and
    no line, where whoever read the output has enough (`rlgns fit runs | head`).
    """
    try:
        code = work()
        sys.stdout.flush()
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is flushed at the very end
        return 141
    except OSError as error:
        print(f"error: {error.strerror or error}: {error.filename}; what was recorded stays", file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # before the work took signals as requests
        return 130
    return code
