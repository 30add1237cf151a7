"""The processes of a sweep: what ends them, which outlive others, and which launcher starts a run."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlgns.commands.cli import main
from rlgns.runs.records import read_lines
from rlgns.sweeps import guard

PATIENCE = 120.0

TRAINER = """
import json, os, pathlib, signal, sys, time
flags = dict(word[2:].split("=", 1) for word in sys.argv[1:])
out = pathlib.Path(flags["out"])
out.mkdir(exist_ok=True)
asked = []
def stop(number, _):
    asked.append(number)
    signal.signal(number, signal.SIG_DFL)  # a second request ends it at once, without a summary
signal.signal(signal.SIGTERM, stop)
(out / "started").write_text(str(os.getpid()))
end = time.monotonic() + float(flags.get("seconds", 600))
while not asked and time.monotonic() < end:
    time.sleep(0.01)
time.sleep(0.5 if asked else 0)  # its last step
(out / "summary.json").write_text(json.dumps({"exit_code": 143 if asked else 0}))
sys.exit(143 if asked else 0)
"""

PLAIN = ["${interpreter}", "-S", "trainer.py", "${args}"]
WRAPPED = ["bash", "wrap.sh", "${interpreter}", "${args}"]
WRAPPER = 'interpreter=$1; shift; $interpreter -S trainer.py "$@"\necho "the trainer has ended"\n'


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "trainer.py").write_text(TRAINER)
    (tmp_path / "wrap.sh").write_text(WRAPPER)
    return tmp_path


def write_sweep(command: list[str] = PLAIN, seeds: int = 3, **parameters: Any) -> None:
    values = {name: {"value": value} for name, value in parameters.items()}
    content = {"method": "grid", "parameters": {"seed": {"values": list(range(seeds))}, **values}, "command": command}
    Path("sweep.yaml").write_text(yaml.safe_dump(content))


def start(*flags: str, **options: Any) -> "subprocess.Popen[str]":
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT} | options
    command = [sys.executable, "-m", "rlgns", "sweep", "sweep.yaml", "--out=out", "--workers=3", *flags]
    return subprocess.Popen(command, text=True, **streams)


def wait_for(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.05)


def trainers() -> list[int]:
    return [int(text) for path in Path("out").glob("*/started") if (text := path.read_text())]


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def summaries() -> list[int]:
    return [json.loads(path.read_text())["exit_code"] for path in sorted(Path("out").glob("*/summary.json"))]


def started() -> Counter[str]:
    journals = sorted(Path("out").glob("sweep*.jsonl"))
    return Counter(event["run"] for path in journals for event in read_lines(path)[0] if event["event"] == "started")


@pytest.mark.parametrize(
    ("number", "command"),
    [(signal.SIGKILL, PLAIN), (signal.SIGKILL, WRAPPED), (signal.SIGTERM, WRAPPED), (signal.SIGHUP, PLAIN)],
)
def test_however_a_launcher_ends_its_runs_are_asked_to_end_once_and_none_is_left(number, command, folder):
    write_sweep(command)
    with start() as launcher:
        wait_for(lambda: len(trainers()) == 3)
        launcher.send_signal(number)
        printed, _ = launcher.communicate(timeout=PATIENCE)
    assert launcher.returncode == (-number if number == signal.SIGKILL else 128 + number), printed
    assert "Traceback" not in printed
    wait_for(lambda: not any(map(is_alive, trainers())))
    assert summaries() == [143, 143, 143]


def test_a_second_signal_kills_all_runs_at_once(folder):
    write_sweep(["bash", "-c", "trap '' TERM; touch $0/started.$$; while :; do sleep 0.1; done", str(folder)], seeds=2)
    with start() as launcher:
        wait_for(lambda: len(list(folder.glob("started.*"))) == 2)
        launcher.send_signal(signal.SIGINT)
        time.sleep(1)
        assert launcher.poll() is None
        launcher.send_signal(signal.SIGINT)
        launcher.communicate(timeout=30)
    assert launcher.returncode == 130
    assert not any(is_alive(int(path.suffix[1:])) for path in folder.glob("started.*"))


@pytest.mark.parametrize("streams", ["pipe", "full", "closed"])
def test_a_closed_terminal_loses_messages_but_no_run(streams, folder):
    """`rlgns sweep … 2>&1 | head -1`, `> /dev/full`, `>&- 2>&-`."""
    write_sweep(seeds=4, seconds=0.3)
    words = "exec " + " ".join([sys.executable, "-m", "rlgns", "sweep", "sweep.yaml", "--out=out"])
    endings = {"pipe": "2>&1", "full": "> /dev/full 2>&1", "closed": ">&- 2>&-"}
    launcher = subprocess.Popen(["bash", "-c", f"{words} {endings[streams]}"], stdout=subprocess.PIPE, text=True)
    if streams == "pipe":
        assert "starts" in launcher.stdout.readline()
    launcher.stdout.close()
    launcher.wait(PATIENCE)
    assert summaries() == [0] * 4
    assert set(started().values()) == {1}


def test_launchers_of_different_shards_in_one_directory_start_no_run_twice(folder):
    write_sweep(seeds=6, seconds=0.5)
    launchers = [start(*flags, "--workers=2") for flags in ([], ["--shard=1/2"], ["--shard=2/3"])]
    printed = [launcher.communicate(timeout=PATIENCE)[0] for launcher in launchers]
    assert [launcher.returncode for launcher in launchers] == [0, 0, 0], printed
    assert started() == {f"seed={seed}": 1 for seed in range(6)}
    assert ["6 finished" in printed[0], "3 finished" in printed[1], "2 finished" in printed[2]] == [True] * 3


def test_a_run_that_outlives_its_launcher_and_its_guard_is_awaited_not_started_again(folder):
    write_sweep(seeds=1, seconds=600)
    with start() as launcher:
        wait_for(trainers)
        (trainer,) = trainers()
        parent = int(Path(f"/proc/{trainer}/stat").read_text().rpartition(")")[2].split()[1])
        for pid in (launcher.pid, parent):
            os.kill(pid, signal.SIGKILL)
    assert is_alive(trainer)
    with start() as launcher:
        assert "another process is running it" in launcher.stdout.readline()
        os.kill(trainer, signal.SIGKILL)
        wait_for(lambda: set(trainers()) - {trainer})
        launcher.send_signal(signal.SIGTERM)
        launcher.communicate(timeout=PATIENCE)
    assert started() == {"run": 2}


def test_a_run_that_another_launcher_gave_up_is_not_started_again(folder):
    write_sweep(["false", "${args}"], seeds=1)
    claims = folder / "out/.claims"
    claims.mkdir(parents=True)
    with (claims / "run.lock").open("w") as claim:
        fcntl.flock(claim, fcntl.LOCK_EX)  # the other launcher has claimed it
        with start("--retries=0") as launcher:
            assert "another process is running it" in launcher.stdout.readline()
            (folder / "out/sweep-1-of-2.jsonl").write_text('{"run": "run", "event": "failed", "exit_code": 7}\n')
            claim.close()
            printed, _ = launcher.communicate(timeout=PATIENCE)
    assert launcher.returncode == 1
    assert "run failed: exit code 7" in printed
    assert not started()


def test_a_finished_run_without_a_summary_is_started_again_to_close_itself(folder, capsys):
    write_sweep(seeds=2, seconds=0)
    arguments = ["sweep", "sweep.yaml", "--out=out", "--retries=0"]
    assert main(arguments) == 0
    (folder / "out/seed=1/summary.json").unlink()
    assert main(arguments) == 0
    assert "2 finished" in capsys.readouterr().out
    assert started() == {"seed=0": 1, "seed=1": 2}


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (["bash", "-c", "echo error: no such game; exit 2"], "failed: no such game (log"),
        (
            ["bash", "-c", "echo 'Traceback (most recent call last):'; echo '  KeyError: 1'; exit 1"],
            "exit code 1: KeyE",
        ),
        (["bash", "-c", "kill -SEGV $$"], "exit code -11: it printed nothing"),
        (["bash", "-c", r"printf '\033[31mred\007\n'; exit 3"], "exit code 3: red"),
        (["./not_executable", "${args}"], "exit code 127: "),
    ],
    ids=["refusal", "traceback", "signal", "colours", "no program"],
)
def test_a_failed_run_is_listed_at_the_end_with_its_reason(command, reason, folder, capsys):
    (folder / "not_executable").write_text("#!/no/such/interpreter\n")
    (folder / "not_executable").chmod(0o755)
    write_sweep(command, seeds=2)
    for _ in range(2):  # the second time from the journal
        assert main(["sweep", "sweep.yaml", "--out=out", "--retries=0"]) == 1
        printed = capsys.readouterr().out
        assert "2 failed" in printed
        assert printed.count(reason) == 2


def test_no_program_of_the_users_is_run_to_learn_its_flags(folder, capsys):
    """The command ignores --help, as scripts may."""
    write_sweep(["bash", "-c", "date +%N >> ran"], seeds=2)
    assert main(["sweep", "sweep.yaml", "--out=out"]) == 0
    assert len((folder / "ran").read_text().split()) == 2
    write_sweep(["${interpreter}", "no_such_file.py", "${args}"])
    assert main(["sweep", "sweep.yaml", "--out=other"]) == 2
    assert "no_such_file.py cannot be run (there is no such file here)" in capsys.readouterr().err


def test_a_guard_ends_as_its_command_does():
    def ended(*command: str) -> int:
        with subprocess.Popen(
            [sys.executable, "-IS", guard.__file__, "5", "", *command], stdin=subprocess.PIPE
        ) as process:
            return process.wait(PATIENCE)

    assert ended("true") == 0
    assert ended("bash", "-c", "exit 7") == 7
    assert ended("bash", "-c", "kill -KILL $$") == -9
    assert ended("no-such-program") == 127


def test_hyperband_stops_the_runs_that_wandb_would_stop(folder, monkeypatch, capsys):
    monkeypatch.setattr("rlgns.sweeps.launcher.LOOK_SECONDS", 0.1)
    (folder / "loss.py").write_text(LOSSES)
    content = {
        "method": "grid",
        "metric": {"name": "loss", "goal": "minimize"},
        "early_terminate": {"type": "hyperband", "min_iter": 3, "eta": 3},
        "parameters": {"level": {"values": [1, 2, 3]}},
        "command": ["${interpreter}", "-S", "loss.py", "${args}"],
    }
    Path("sweep.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    assert main(["sweep", "sweep.yaml", "--out=out"]) == 0
    printed = capsys.readouterr()
    assert "1 finished, 2 pruned" in printed.out
    assert "level=3: stopped by early_terminate" in printed.err
    assert main(["sweep", "sweep.yaml", "--out=out"]) == 0
    assert set(started().values()) == {1}
    assert main(["sweep", "sweep.yaml", "--out=whole", "--no-prune"]) == 0
    assert "3 finished" in capsys.readouterr().out


LOSSES = """
import json, pathlib, sys, time
flags = dict(word[2:].split("=", 1) for word in sys.argv[1:])
out = pathlib.Path(flags["out"])
out.mkdir()
level = int(flags["level"])
for step in range(1, 9):
    with (out / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"progress/steps": step, "loss": level + 1 / step}) + "\\n")
time.sleep(0.5 if level == 1 or "whole" in str(out) else 600)
(out / "summary.json").write_text('{"exit_code": 0}')
"""


def test_hyperband_warns_if_its_metric_is_missing(folder, capsys):
    write_sweep(seeds=1, seconds=0)
    content = yaml.safe_load(Path("sweep.yaml").read_text())
    content |= {"metric": {"name": "accuracy"}, "early_terminate": {"type": "hyperband", "min_iter": 1}}
    Path("sweep.yaml").write_text(yaml.safe_dump(content))
    assert main(["sweep", "sweep.yaml", "--out=out"]) == 0
    assert "run has no accuracy in summary or records; is it what metric: means?" in capsys.readouterr().err
