import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rlgns.runs.exit_codes import exit_code_of
from rlgns.runs.terminal import TolerantStream, tolerant_output

FULL = pytest.param("> /dev/full", marks=pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full"))

PROGRAM = """
import os, sys
from rlgns.runs.exit_codes import exit_code_of

def work():
    print("tr Σ × 2", file=sys.stderr)
    for i in range(20_000):
        print("tr Σ × 2", i)
    with open("file", "w") as file:
        file.write(str(file.fileno()))
    return int(sys.argv[1])

sys.exit(exit_code_of(work, prints_its_result=len(sys.argv) > 2))
"""


def ended(tmp_path: Path, arguments: str, output: str, **environment: str) -> tuple[int, str]:
    """The exit code and standard error of the program, with its output redirected by the shell."""
    command = f"{sys.executable} -c '{PROGRAM}' {arguments} {output}; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=False,
        env={**os.environ, **environment},
    )  # fmt: skip
    return done.returncode, done.stderr.replace("tr Σ × 2\n", "")


@pytest.mark.parametrize("output", ["| true", "| head -1", FULL, ">&-", ">&- 2>&-", "2>&1 | true", "> /dev/full 2>&1"])
@pytest.mark.parametrize("code", [0, 3])
def test_words_that_do_not_arrive_change_nothing_of_a_run(output, code, tmp_path):
    assert ended(tmp_path, str(code), output) == (code, "")
    assert int((tmp_path / "file").read_text()) > 2  # a file never takes the number of a closed stream


@pytest.mark.parametrize("output", ["| true", "| head -1"])
def test_a_command_whose_reader_went_away_ends_silently_with_141(output, tmp_path):
    assert ended(tmp_path, "0 result", output) == (141, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_result_that_cannot_be_printed_is_one_line_and_exit_code_1(tmp_path):
    code, err = ended(tmp_path, "0 result", "> /dev/full")
    assert code == 1
    assert err == (
        "error: standard output could not be written (No space left on device); send it to a place with room\n"
    )


@pytest.mark.parametrize(
    ("encoding", "line"),
    [
        ("ascii", "tr Sigma x 2 0"),
        ("latin-1", "tr Sigma × 2 0"),
        ("cp1252", "tr Sigma × 2 0"),
        ("utf-16", "tr Σ × 2 0"),
    ],
)
def test_what_an_encoding_lacks_is_replaced_by_what_means_the_same(encoding, line, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, "0", "result"], cwd=tmp_path, capture_output=True, check=False,
        env={**os.environ, "PYTHONIOENCODING": encoding},
    )  # fmt: skip
    assert done.returncode == 0
    assert done.stdout.decode(encoding).splitlines()[0] == line


def test_what_has_no_replacement_is_a_question_mark():
    stream = TolerantStream(io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    stream.write("16 × 5 [80, ∞) 水")
    stream.flush()
    assert stream.buffer.getvalue() == b"16 x 5 [80, inf) ?"


@pytest.mark.parametrize("command", ["--help", "fit --help", "train digits --help"])
def test_help_is_a_result(command, tmp_path):
    program = f"{sys.executable} -m rlgns {command}"
    for output, code in (("| true", 141), ("> /dev/full", 1), (">&-", 0)):
        command = f"{program} {output}; exit ${{PIPESTATUS[0]}}"
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
        lines = done.stderr.splitlines()
        assert (done.returncode, len(lines)) == (code, int(code == 1)), lines


class Broken(io.StringIO):
    def write(self, text: str) -> int:
        raise BrokenPipeError(32, "Broken pipe")


def test_a_failure_is_remembered_and_a_stream_without_descriptor_can_fail_too():
    stream = TolerantStream(Broken())
    assert stream.write("abc") == 3
    stream.flush()
    assert isinstance(stream.failure, BrokenPipeError)
    assert not stream.isatty()


def test_a_closed_stream_takes_everything():
    closed = io.StringIO()
    closed.close()
    stream = TolerantStream(closed)
    print("x", file=stream, flush=True)
    stream.writelines(["x"])
    assert not stream.isatty()


def test_streams_are_what_they_were_afterwards(capsys):
    before = sys.stdout, sys.stderr
    with tolerant_output() as outer, tolerant_output() as inner:
        assert outer is inner is sys.stdout
        print("Σ")
    assert (sys.stdout, sys.stderr) == before
    assert capsys.readouterr().out == "Σ\n"


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ValueError("seed x is no number"), 2, "error: seed x is no number\n"),
        (OSError(28, "No space left"), 1, "error: No space left; what was recorded stays\n"),
        (OSError(28, "No space left", "a"), 1, "error: No space left: a; what was recorded stays\n"),
        (SystemExit("no such thing"), 1, "error: no such thing\n"),
        (SystemExit(None), 0, ""),
        (SystemExit(7), 7, ""),
        (KeyboardInterrupt(), 130, ""),
        (BrokenPipeError(), 141, ""),
    ],
)  # fmt: skip
def test_a_failure_is_one_line_and_an_exit_code(error, code, line, capsys):
    def fail() -> int:
        raise error

    assert exit_code_of(fail) == code
    assert capsys.readouterr().err == line
