"""Runs of scripts/train_atari.py, or of other scripts, in processes of their own.

`start` forks them from a process that has torch and matplotlib loaded already, which saves seconds and shares nothing
else; `start_anew` runs a new interpreter, for what is about the process itself.
"""

import multiprocessing
import os
import runpy
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from support.processes import HANG, child_environment, wait_until

__all__ = [
    "COMMAND", "FORKS", "SCRIPT", "TIMEOUT", "Ended", "Started",
    "environment", "run", "start", "start_anew", "wait_until",
]  # fmt: skip

SCRIPT = Path(__file__).parents[2] / "scripts" / "train_atari.py"
COMMAND = Path(sysconfig.get_path("scripts")) / "rlgns"
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["support.preloaded"])
TIMEOUT = HANG


@dataclass
class Ended:
    exit_code: int
    out: str
    err: str

    @property
    def error_lines(self) -> list[str]:
        return [line for line in self.err.splitlines() if "error" in line.lower() or "Traceback" in line]


@dataclass
class Started:
    process: multiprocessing.process.BaseProcess
    folder: Path

    @property
    def pid(self) -> int:
        assert self.process.pid
        return self.process.pid

    def end(self) -> Ended:
        self.process.join(TIMEOUT)
        if self.process.exitcode is None:
            self.process.kill()
            raise TimeoutError(f"the run has not ended: {(self.folder / 'stderr').read_text()}")
        out, err = ((self.folder / name).read_text() for name in ("stdout", "stderr"))
        return Ended(self.process.exitcode, out, err)


def environment(folder: Path) -> dict[str, str]:
    """Of a machine with an empty home, no W&B and no proxy settings; the processor is that of the tests."""
    home = folder / "home"
    home.mkdir(exist_ok=True)
    return child_environment(LANG="C.UTF-8", HOME=home)


def start(folder: Path, *arguments: str, script: Path = SCRIPT, **variables: str) -> Started:
    """`folder` becomes the working directory and takes what is printed; `variables` are of the environment."""
    process = FORKS.Process(target=_run_script, args=(arguments, environment(folder) | variables, folder, script))
    process.start()
    return Started(process, folder)


def run(folder: Path, *arguments: str, script: Path = SCRIPT) -> Ended:
    return start(folder, *arguments, script=script).end()


TAKE_TERMINAL = f"""
import fcntl, runpy, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
sys.argv[0] = {str(SCRIPT)!r}
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def start_anew(
    folder: Path, *arguments: str, on_terminal: bool = False, **options: object
) -> "subprocess.Popen[bytes]":
    """With `on_terminal` the standard input becomes the terminal whose keys reach the process (Ctrl-C above all)."""
    what = ["-c", TAKE_TERMINAL] if on_terminal else [SCRIPT]
    return subprocess.Popen([sys.executable, *what, *arguments], cwd=folder, env=environment(folder), **options)


def _run_script(arguments: tuple[str, ...], environment: dict[str, str], folder: Path, script: Path = SCRIPT) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), descriptor)
    sys.argv = [str(script), *arguments]
    sys.path.insert(0, str(script.parent))  # as the interpreter does
    runpy.run_path(str(script), run_name="__main__")
