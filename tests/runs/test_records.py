import errno
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from rlgns.runs.records import STEPS, RecordWriter, columns, plain, read_lines, read_records

RECORD = {"progress/steps": 1, "noise/policy/noise_scale": 812.5, "train/kind": "ppo", "train/done": False, "x/y": None}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "metrics.jsonl"


def write(path: Path, *records: dict[str, object]) -> None:
    with RecordWriter(path) as writer:
        for record in records:
            writer.write(record)


def test_what_is_written_is_read_back(path):
    write(path, RECORD, {"progress/steps": 2})
    assert read_records(path) == [RECORD, {"progress/steps": 2}]


def test_a_record_is_in_the_file_when_write_returns(path):
    with RecordWriter(path) as writer:
        writer.write(RECORD)
        assert read_records(path) == [RECORD]


def test_a_second_writer_appends(path):
    write(path, {"a": 1})
    write(path, {"a": 2})
    assert read_records(path) == [{"a": 1}, {"a": 2}]


def test_scalars_of_numpy_and_torch_become_plain_values():
    scalars = {
        "a": np.float32(0.5),
        "b": np.int64(3),
        "c": np.array(2.0),
        "d": np.bool_(True),
        "e": torch.tensor(1.5),
        "f": np.float64(0.25),
    }
    values = plain(scalars)
    assert values == {"a": 0.5, "b": 3, "c": 2.0, "d": True, "e": 1.5, "f": 0.25}
    assert [type(value) for value in values.values()] == [float, int, float, bool, float, float]


def test_every_line_is_strict_json_and_non_finite_numbers_are_null(path):
    write(path, {"a": math.nan, "b": np.float32("inf"), "c": np.array(-np.inf), "d": 1.0})
    line = path.read_text()
    assert json.loads(line, parse_constant=pytest.fail) == {"a": None, "b": None, "c": None, "d": 1.0}


@pytest.mark.parametrize("value", [{"nested": 1}, [1, 2], np.zeros(2), torch.zeros(1), 1j, Path(), b"bytes"])
def test_a_value_that_is_no_scalar_is_refused_by_its_key_and_nothing_is_written(path, value):
    with RecordWriter(path) as writer, pytest.raises(TypeError, match="'group/quantity'"):
        writer.write({"good": 1, "bad": value})
    assert path.read_bytes() == b""


def test_a_key_that_is_no_string_is_refused():
    with pytest.raises(TypeError, match="record key 3 is not a string"):
        plain({3: 1})  # type: ignore[dict-item]


def test_a_half_written_last_line_costs_that_line_only(path):
    write(path, {"a": 1}, {"a": 2})
    path.write_bytes(path.read_bytes()[:-4])  # a crash while the second line was being written
    write(path, {"a": 3})
    assert read_records(path) == [{"a": 1}, {"a": 3}]
    assert read_lines(path) == ([{"a": 1}, {"a": 3}], 1)


def test_unreadable_lines_are_skipped_and_counted(path):
    write(path, {"a": 1})
    with path.open("ab") as file:
        file.write(b'\0\0\0\0\n\xff\xfe\n[1, 2]\n"text"\n{"a": NaN}\n{"a": 2}\n\n{"a"')
    assert read_records(path) == [{"a": 1}, {"a": 2}]
    assert read_lines(path)[1] == 6  # the empty line does not count


def test_a_run_killed_amid_writing_loses_at_most_the_line_being_written(path):
    code = f"""
import os, signal
from pathlib import Path
from rlgns.runs.records import RecordWriter
writer = RecordWriter(Path({str(path)!r}))
for steps in range(100):
    writer.write({{"progress/steps": steps}})
os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", code], check=False)
    assert columns(read_records(path), "progress/steps")[0].tolist() == list(range(100))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_full_disk_is_an_error_that_names_the_file():
    with RecordWriter(Path("/dev/full")) as writer, pytest.raises(OSError, match="/dev/full") as caught:
        writer.write(RECORD)
    assert caught.value.errno == errno.ENOSPC


def test_a_line_cut_short_by_a_full_disk_spoils_no_later_line(path):
    class AlmostFullDisk:  # accepts three bytes, then fails
        def __init__(self):
            self.room = 3

        def write(self, data):
            if not self.room:
                raise OSError(errno.ENOSPC, "No space left on device")
            taken, self.room = data[: self.room], 0
            return file.write(taken)

    with RecordWriter(path) as writer:
        file, writer._file = writer._file, AlmostFullDisk()
        with pytest.raises(OSError, match=r"metrics\.jsonl"):
            writer.write({"a": 1})
        writer._file = file
        writer.write({"a": 2})
    assert read_lines(path) == ([{"a": 2}], 1)


def test_resumption_supersedes_the_records_after_its_checkpoint(path):
    with RecordWriter(path) as writer:
        for steps in (1, 2, 3, 4):
            writer.write({"progress/steps": steps, "try": 1})
        writer.mark_resumed(2)
        for steps in (3, 4):
            writer.write({"progress/steps": steps, "try": 2})
    records = read_records(path)
    assert [(record["progress/steps"], record["try"]) for record in records] == [(1, 1), (2, 1), (3, 2), (4, 2)]
    assert len(read_lines(path)[0]) == 7  # no line is erased


def test_two_resumptions_keep_the_last_record_of_every_update(path):
    with RecordWriter(path) as writer:
        for attempt, checkpoint in enumerate((None, 1, 0)):
            if checkpoint is not None:
                writer.mark_resumed(checkpoint)
            for steps in range((checkpoint or 0) + 1, 4):
                writer.write({"progress/steps": steps, "try": attempt})
    assert read_records(path) == [{"progress/steps": steps, "try": 2} for steps in (1, 2, 3)]


def test_resumption_keeps_records_without_steps(path):
    with RecordWriter(path) as writer:
        writer.write({"eval/return": 5.0})
        writer.mark_resumed(0)
    assert read_records(path) == [{"eval/return": 5.0}]


def test_events_are_returned_only_when_asked_for(path):
    event = {"event": "resume", "progress/steps": 1, "time/seconds": 3.0}
    write(path, {"progress/steps": 1}, event)
    assert read_records(path) == [{"progress/steps": 1}]
    assert read_records(path, events=True) == [{"progress/steps": 1}, event]


def test_words_that_a_run_records_about_its_measurements_cost_no_record(path):
    record = {
        STEPS: 1,
        "noise/unit": "environment",
        "noise/total/noise_scale_state": "lower bound",
        "noise/total/b": 2.0,
    }
    with RecordWriter(path) as writer:
        writer.write(record)
    assert read_lines(path) == ([record], 0)


def test_columns_are_float_arrays_with_nan_for_what_is_missing_or_null():
    records = [{"a": 1, "b": True}, {"a": None}, {"b": 2.5}]
    a, b = columns(records, "a", "b")
    np.testing.assert_array_equal(a, [1.0, np.nan, np.nan])
    np.testing.assert_array_equal(b, [1.0, np.nan, 2.5])
    assert a.dtype == b.dtype == np.float64


def test_a_column_of_text_is_refused():
    with pytest.raises(ValueError, match="ppo"):
        columns([{"a": "ppo"}], "a")


def test_importing_records_loads_neither_torch_nor_wandb():
    code = "import sys, rlgns.runs.records; assert not {'torch', 'wandb'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_word_where_readers_expect_a_number_is_refused_before_it_is_written(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with RecordWriter(path) as writer:
        writer.write({"noise/policy/noise_scale_state": "interval", "noise/policy/noise_scale_weighting": "updates"})
        with pytest.raises(ValueError, match="noise/policy/sq_norm is text where a finite number belongs"):
            writer.write({"noise/policy/sq_norm": "small"})
    assert len(read_records(path)) == 1
