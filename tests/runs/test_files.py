import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from rlgns.runs.files import replacing, write_bytes, write_json, write_text

FULL = Path("/dev/full")


def test_what_is_written_is_what_was_given(tmp_path):
    write_json(tmp_path / "a.json", {"a": [1, None]})
    write_text(tmp_path / "a.csv", "Σ\r\n")
    write_bytes(tmp_path / "a.gz", b"\0")
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": [1, None]}
    assert (tmp_path / "a.csv").read_bytes() == "Σ\r\n".encode()
    assert (tmp_path / "a.gz").read_bytes() == b"\0"
    assert {file.name for file in tmp_path.iterdir()} == {"a.json", "a.csv", "a.gz"}


def test_json_is_strict(tmp_path):
    with pytest.raises(ValueError, match="Out of range float"):
        write_json(tmp_path / "summary.json", {"a": float("nan")})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("step", ["write_bytes", "replace"])
def test_a_failure_at_any_step_keeps_the_old_file_leaves_no_scrap_and_names_the_file(step, tmp_path, monkeypatch):
    path = tmp_path / "summary.json"
    write_json(path, {"a": 1})

    def full(self, *_, **__):
        self.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, step, full)
    with pytest.raises(OSError, match="No space left") as error:
        write_json(path, {"a": 2})
    assert error.value.filename == str(path)
    assert json.loads(path.read_text()) == {"a": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["summary.json"]


def test_an_interruption_keeps_the_old_file_too(tmp_path):
    path = tmp_path / "page.html"
    write_text(path, "old")
    with pytest.raises(KeyboardInterrupt), replacing(path) as file:
        file.write_text("ne")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["page.html"]


def test_a_process_killed_while_it_writes_leaves_the_old_file(tmp_path):
    path = tmp_path / "page.html"
    write_text(path, "old")
    code = (
        "import os, signal, sys; from pathlib import Path; from rlgns.runs.files import replacing\n"
        "with replacing(Path(sys.argv[1])) as file: file.write_text('ne'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code, path], check=False).returncode == -9
    assert path.read_text() == "old"


def test_a_directory_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        write_text(tmp_path / "absent" / "a.csv", "")
    assert error.value.filename == str(tmp_path / "absent" / "a.csv")


def test_the_rights_of_the_old_file_stay_and_a_new_one_gets_the_usual(tmp_path):
    path, fresh, usual = tmp_path / "a", tmp_path / "b", tmp_path / "c"
    path.touch(0o640)
    usual.touch()
    write_text(path, "x")
    write_text(fresh, "x")
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert fresh.stat().st_mode == usual.stat().st_mode


def test_a_link_stays_and_what_it_leads_to_is_written(tmp_path):
    (tmp_path / "shared").mkdir()
    link = tmp_path / "page.html"
    link.symlink_to(tmp_path / "shared" / "page.html")
    write_text(link, "x")
    assert link.is_symlink()
    assert (tmp_path / "shared" / "page.html").read_text() == "x"


def test_devices_and_pipes_are_written_to_and_stay(tmp_path):
    write_text(Path(os.devnull), "x")
    assert stat.S_ISCHR(Path(os.devnull).stat().st_mode)
    os.mkfifo(tmp_path / "pipe")
    with subprocess.Popen(["cat", tmp_path / "pipe"], stdout=subprocess.PIPE) as reader:
        write_text(tmp_path / "pipe", "x")
        assert reader.communicate()[0] == b"x"
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


@pytest.mark.skipif(not FULL.exists(), reason="needs /dev/full")
def test_a_full_device_is_named():
    with pytest.raises(OSError, match="No space left") as error:
        write_text(FULL, "x")
    assert error.value.filename == "/dev/full"
