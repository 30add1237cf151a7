import fcntl
import json
import subprocess
import sys
from pathlib import Path

import pytest

import rlgns.runs.directory
from rlgns.runs.directory import CHECKPOINT, CONFIG, METRICS, PACKAGES, RunDirectory, provenance, read_config
from rlgns.runs.files import write_json


def test_a_directory_is_made_with_its_parents_and_is_free_again_afterwards(tmp_path):
    path = tmp_path / "a" / "b"
    for _ in range(2):
        with RunDirectory(path) as directory:
            assert path.is_dir()
            assert directory / "x" == path / "x"


@pytest.mark.parametrize("result", [METRICS, CHECKPOINT])
def test_a_directory_that_holds_a_run_is_not_written_over(tmp_path, result):
    (tmp_path / CONFIG).write_text("{}")
    (tmp_path / result).write_text("{}")
    with pytest.raises(ValueError, match=r"already holds a run; continue it with --resume .*, or choose another --out"):
        RunDirectory(tmp_path)
    with RunDirectory(tmp_path, resume=True):
        pass


def test_a_directory_whose_run_failed_before_its_first_result_can_be_used_again(tmp_path):
    (tmp_path / CONFIG).write_text("{}")
    (tmp_path / METRICS).touch()
    with RunDirectory(tmp_path) as directory, (tmp_path / ".lock").open() as lock:
        assert directory.path == tmp_path
        with pytest.raises(BlockingIOError):  # this process holds the lock
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_directory_without_a_run_cannot_be_resumed_and_stays_as_it_is(tmp_path):
    with pytest.raises(ValueError, match=r"holds no run to resume \(config.json is missing\)"):
        RunDirectory(tmp_path / "nothing", resume=True)
    assert not (tmp_path / "nothing").exists()


def test_two_do_not_write_to_one_directory(tmp_path):
    with RunDirectory(tmp_path), pytest.raises(ValueError, match="is in use by another process; wait for it"):
        RunDirectory(tmp_path)
    code = f"""
from pathlib import Path
from rlgns.runs.directory import RunDirectory
try:
    RunDirectory(Path({str(tmp_path)!r}))
except ValueError as error:
    print(error)
"""
    with RunDirectory(tmp_path):
        said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "is in use by another process" in said


def test_a_killed_process_leaves_no_lock(tmp_path):
    code = f"""
import os, signal
from pathlib import Path
from rlgns.runs.directory import RunDirectory
directory = RunDirectory(Path({str(tmp_path)!r}))
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    with RunDirectory(tmp_path), (tmp_path / ".lock").open() as lock, pytest.raises(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # this process holds the lock


@pytest.mark.parametrize("place", ["under a file", "a file", "under /proc"])
def test_a_place_that_cannot_be_written_to_is_refused_with_the_reason(place, tmp_path):
    file = tmp_path / "file"
    file.touch()
    path = {"under a file": file / "run", "a file": file, "under /proc": Path("/proc/run")}[place]
    with pytest.raises(ValueError, match=r"cannot be written to \(.+\); choose another --out") as error:
        RunDirectory(path)
    assert "\n" not in str(error.value)


def test_fresh_directories_never_coincide(tmp_path, monkeypatch):
    class OneMoment:
        @staticmethod
        def now(zone):
            return rlgns_datetime(2026, 11, 20, 12, tzinfo=zone)

    rlgns_datetime = rlgns.runs.directory.datetime
    monkeypatch.setattr(rlgns.runs.directory, "datetime", OneMoment)
    with RunDirectory.fresh(tmp_path / "runs", "pong-a2c") as a, RunDirectory.fresh(tmp_path / "runs", "pong-a2c") as b:
        assert [one.path.name for one in (a, b)] == ["pong-a2c-20261120-120000", "pong-a2c-20261120-120000-1"]


def test_a_fresh_directory_where_nothing_can_be_written_is_refused(tmp_path):
    (tmp_path / "runs").touch()
    with pytest.raises(ValueError, match=r"runs cannot be written to \(.+\); choose another --out"):
        RunDirectory.fresh(tmp_path / "runs", "pong-a2c")


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"options": 3}', "{}"])
def test_a_damaged_config_is_named(content, tmp_path):
    (tmp_path / CONFIG).write_text(content)
    with pytest.raises(ValueError, match=r"config.json is damaged; name another run directory"):
        read_config(tmp_path)


def test_a_config_is_read_as_it_was_written(tmp_path):
    write_json(tmp_path / CONFIG, {"options": {"seed": 3}, "batch_size": 80})
    assert read_config(tmp_path) == {"options": {"seed": 3}, "batch_size": 80}


def test_provenance_tells_what_made_the_run():
    made_by = provenance()
    assert made_by["versions"].keys() == set(PACKAGES)
    assert made_by["versions"]["torch"].startswith("2.")
    assert made_by["python"] == ".".join(map(str, sys.version_info[:3]))
    assert made_by["command"]
    assert json.dumps(made_by)


@pytest.mark.parametrize(
    ("argv", "command"),
    [
        (["/some/where/rlgns/__main__.py", "train", "--goals=[5, 1]"], "python -m rlgns train '--goals=[5, 1]'"),
        (["/some/where/bin/rlgns", "train", "mnist"], "rlgns train mnist"),
        (["scripts/train_atari.py", "--seed", "1"], "python scripts/train_atari.py --seed 1"),
        (["HERE/scripts/train_atari.py"], "python scripts/train_atari.py"),
    ],
)
def test_the_command_is_one_that_a_person_can_give_anywhere(argv, command, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [argv[0].replace("HERE", str(tmp_path)), *argv[1:]])
    assert provenance()["command"] == command


def test_the_git_commit_is_that_of_the_source_with_a_mark_if_it_is_changed():
    def git(*arguments):
        command = ["git", *arguments]
        root = Path(rlgns.runs.directory.__file__).parent
        return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False).stdout.strip()

    if not git("rev-parse", "HEAD"):
        pytest.skip("not a git checkout")
    dirty = "-dirty" if git("diff", "HEAD", "--name-only") else ""
    assert provenance()["git_commit"] == git("rev-parse", "HEAD") + dirty


def test_outside_a_git_checkout_or_without_git_there_is_no_commit(monkeypatch, tmp_path):
    monkeypatch.setattr(rlgns.runs.directory, "__file__", str(tmp_path / "run_directory.py"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert provenance()["git_commit"] is None
    monkeypatch.setenv("PATH", "")
    assert provenance()["git_commit"] is None
