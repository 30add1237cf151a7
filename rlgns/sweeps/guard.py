"""The parent of one run's processes: it asks them to end once, and whoever is left of them is ended in the end.

    python guard.py SECONDS CORES COMMAND …

The command gets a process group of its own, an empty standard input, and the cores (comma-separated; "" for all). It is
asked to end by one SIGTERM when the guard gets one, or when the guard's standard input, a pipe whose other end the
launcher alone holds, comes to its end: then the launcher is gone, however it went. A script that dies of the signal
leaves the trainers that it started: they get theirs when it is gone. SECONDS after, or on SIGQUIT, all are killed.
The guard ends as the command did, by the same exit code or signal. It is run as a file, without the package.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import select
import signal
import sys
import time
from collections.abc import Sequence

LINGER_SECONDS = 60.0
"""How long a group may outlive its command before it is asked to end."""

ADOPT_ORPHANS = 36  # Linux: PR_SET_CHILD_SUBREAPER


class Guard:
    """The command's processes, and how far their end has come."""

    def __init__(self, command: Sequence[str], seconds: float) -> None:
        self.seconds = seconds
        self.status: int | None = None
        self._deadline = float("inf")  # beyond it all are killed
        self._linger = float("inf")  # beyond it a group without its command is asked to end
        self._asked: set[str] = set()
        self.group = os.posix_spawnp(
            command[0],
            list(command),
            os.environ,
            file_actions=[(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)],
            setpgroup=0,
            setsigdef=[signal.SIGPIPE, signal.SIGXFSZ],
        )

    def ask_to_end(self) -> None:
        """One SIGTERM to the command; to the rest of its group when it is gone."""
        self._deadline = min(self._deadline, time.monotonic() + self.seconds)
        self._send("command" if self.status is None else "group", signal.SIGTERM)

    def kill(self) -> None:
        """All of the group, at once."""
        self._send("kill", signal.SIGKILL)

    def is_over(self) -> bool:
        """Whether command and group are gone; moves their end on if it is time for that."""
        self._reap()
        now = time.monotonic()
        if self.status is not None:
            if not _exists(self.group):
                return True
            self._linger = min(self._linger, now + LINGER_SECONDS)
            if self._asked or now > self._linger:
                self.ask_to_end()
        if now > self._deadline:
            self.kill()
        return self.status is not None and now > self._deadline + self.seconds

    def _send(self, whom: str, number: int) -> None:
        if whom in self._asked:
            return
        self._asked.add(whom)
        try:
            if whom == "command":
                os.kill(self.group, number)
            else:
                os.killpg(self.group, number)
        except ProcessLookupError:
            pass

    def _reap(self) -> None:
        try:
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                if ended[0] == self.group:
                    self.status = ended[1]
        except ChildProcessError:
            pass


def main(arguments: Sequence[str]) -> int:
    """Run the command to its end; its exit code."""
    seconds, cores, *command = arguments
    _adopt_orphans()
    if cores:
        os.sched_setaffinity(0, [int(core) for core in cores.split(",")])
    signals, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)
    try:
        guard = Guard(command, float(seconds))
    except OSError as error:
        print(f"error: {command[0]} cannot be run: {error.strerror}", file=sys.stderr)
        return 127
    _watch(guard, signals)
    assert guard.status is not None
    return _exit_code(guard.status)


def _watch(guard: Guard, signals: int) -> None:
    watched = [0, signals]
    while not guard.is_over():
        ready = select.select(watched, [], [], 0.1 if guard.status is not None else 1.0)[0]
        came = os.read(signals, 64) if signals in ready else b""
        if signal.SIGQUIT in came:
            guard.kill()
        elif {signal.SIGTERM, signal.SIGINT, signal.SIGHUP} & set(came):
            guard.ask_to_end()
        if 0 in ready and not os.read(0, 64):  # the launcher is gone
            watched = [signals]
            guard.ask_to_end()


def _exit_code(status: int) -> int:
    """The command's exit code; ends this process by the signal that ended the command."""
    if os.WIFSIGNALED(status):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # one core dump is enough
        number = os.WTERMSIG(status)
        if number not in {signal.SIGKILL, signal.SIGSTOP}:
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        return 128 + number
    return os.waitstatus_to_exitcode(status)


def _exists(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _adopt_orphans() -> None:
    """Let grandchildren whose parent dies become children, so that they are reaped here; Linux alone knows how."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(ADOPT_ORPHANS, 1, 0, 0, 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
