"""The parent process of one run: it asks the run's processes to end, and kills those that do not.

    python guard.py SECONDS CORES COMMAND …

The command gets a process group of its own, an empty standard input, and the cores (comma-separated; "" for all). The
guard sends it one SIGTERM when the guard itself is signalled, or when the guard's standard input reaches its end. That
input is a pipe whose other end only the launcher holds, so its end means that the launcher is gone, however it died. A
script that dies of the signal may leave behind trainers that it started; they get their SIGTERM once it is gone. After
SECONDS, or on SIGQUIT, the whole group is killed. The guard ends as the command did, with the same exit code or signal.
It is run as a file and does not import the package.
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
"""How long other processes of the group may outlive the command before they are asked to end."""

ADOPT_ORPHANS = 36  # Linux: PR_SET_CHILD_SUBREAPER


class Guard:
    """The processes of the command, and which signals they have been sent.

    Args:
        command: Program and arguments.
        seconds: Time between the request to end and the kill.
    """

    def __init__(self, command: Sequence[str], seconds: float) -> None:
        self.seconds = seconds
        self.status: int | None = None
        self._kill_at = float("inf")  # time at which the group is killed
        self._linger_until = float("inf")  # time at which a group without its command is asked to end
        self._sent: set[str] = set()  # recipients of signals so far
        self.group = os.posix_spawnp(
            command[0],
            list(command),
            os.environ,
            file_actions=[(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)],
            setpgroup=0,
            setsigdef=[signal.SIGPIPE, signal.SIGXFSZ],
        )

    def ask_to_end(self) -> None:
        """Send one SIGTERM to the command, or to the rest of its group if the command is gone."""
        self._kill_at = min(self._kill_at, time.monotonic() + self.seconds)
        self._send("command" if self.status is None else "group", signal.SIGTERM)

    def kill(self) -> None:
        """Kill the whole group at once."""
        self._send("kill", signal.SIGKILL)

    def is_over(self) -> bool:
        """Whether the command and its group are gone. Sends the next signal if it is due."""
        self._reap()
        now = time.monotonic()
        if self.status is not None:
            if not _exists(self.group):
                return True
            self._linger_until = min(self._linger_until, now + LINGER_SECONDS)
            if self._sent or now > self._linger_until:
                self.ask_to_end()
        if now > self._kill_at:
            self.kill()
        return self.status is not None and now > self._kill_at + self.seconds

    def _send(self, recipient: str, number: int) -> None:
        """Send a signal, but never twice to the same recipient."""
        if recipient in self._sent:
            return
        self._sent.add(recipient)
        try:
            if recipient == "command":
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
    """Run the command until its end and return its exit code."""
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
    """Pass signals and the end of the standard input on until the guard is over.

    Args:
        guard: The guard.
        signals: Descriptor from which the numbers of received signals are read.
    """
    watched = [0, signals]
    while not guard.is_over():
        ready = select.select(watched, [], [], 0.1 if guard.status is not None else 1.0)[0]
        received = os.read(signals, 64) if signals in ready else b""
        if signal.SIGQUIT in received:
            guard.kill()
        elif {signal.SIGTERM, signal.SIGINT, signal.SIGHUP} & set(received):
            guard.ask_to_end()
        if 0 in ready and not os.read(0, 64):  # the launcher is gone
            watched = [signals]
            guard.ask_to_end()


def _exit_code(status: int) -> int:
    """The command's exit code. If a signal ended the command, the same signal ends this process."""
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
    """Make grandchildren whose parent dies children of this process, so that it reaps them; only Linux offers this."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(ADOPT_ORPHANS, 1, 0, 0, 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
