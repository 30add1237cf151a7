"""TensorBoard's copy of a run, read back with TensorBoard's own reader."""

import struct
from pathlib import Path

import numpy as np
import pytest
from support.small_task import run as run_small_task
from test_extras import python_without

from rlgns.commands.cli import main
from rlgns.runs.records import read_records
from rlgns.runs.tensorboard_sink import TensorBoardSink

tensorboard = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")


def read_back(run: Path):
    reader = tensorboard.EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0, "images": 0})
    return reader.Reload()


def assert_same_numbers(run: Path, x_axis: str) -> int:
    """Compare every number of the records with TensorBoard's scalars; the number of numbers."""
    expected: dict[str, list[tuple[int, float]]] = {}
    for record in read_records(run / "metrics.jsonl"):
        for key, value in record.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                expected.setdefault(key, []).append((record[x_axis], float(np.float32(value))))
    reader = read_back(run)
    found = {tag: [(event.step, event.value) for event in reader.Scalars(tag)] for tag in reader.Tags()["scalars"]}
    assert found == expected
    return sum(map(len, expected.values()))


AGENT = ("train", "atari", "--env", "CartPole-v1", "--algo", "ppo", "--num-envs", "4", "--num-steps", "8")
QUIET = ("--wandb", "disabled", "--num-torch-threads", "1", "--tensorboard")


def test_every_number_of_an_agents_records_is_a_scalar_at_its_transitions_and_a_resumed_run_goes_on(tmp_path):
    run = tmp_path / "run"
    assert main([*AGENT, "--total-transitions", "640", *QUIET, "--out", str(run)]) == 0
    first = assert_same_numbers(run, "progress/transitions")
    assert first > 20 * 20
    reader = read_back(run)
    assert [image.step for image in reader.Images("figures/noise_scale")] == [640]
    (options,) = reader.Tensors("options")
    assert "|num_envs|4|" in options.tensor_proto.string_val[0].decode()
    assert main(["train", "atari", "--resume", str(run), "--total-transitions", "960"]) == 0
    assert assert_same_numbers(run, "progress/transitions") > first
    assert len(list((run / "tensorboard").iterdir())) == 2


def test_records_after_the_checkpoint_are_superseded_as_in_the_records_file(tmp_path):
    run = tmp_path / "run"
    assert run_small_task(run, 30, tensorboard=True) == 0
    saved = (run / "checkpoint.pt").read_bytes()
    assert run_small_task(None, 50, resume=run, tensorboard=True) == 0
    (run / "checkpoint.pt").write_bytes(saved)  # as if the run had been killed after update 50
    assert run_small_task(None, 60, resume=run, tensorboard=True) == 0
    assert assert_same_numbers(run, "progress/examples") == 3 * 60
    assert [event.step for event in read_back(run).Scalars("progress/steps")] == [256 * step for step in range(1, 61)]


def test_training_is_bit_for_bit_the_same_with_and_without_it(tmp_path):
    for name, flags in (("with", QUIET), ("without", QUIET[:-1])):
        assert main([*AGENT, "--total-transitions", "320", *flags, "--out", str(tmp_path / name)]) == 0
    one, other = (read_records(tmp_path / name / "metrics.jsonl") for name in ("with", "without"))
    assert [{key: value for key, value in record.items() if not key.startswith("time/")} for record in one] == [
        {key: value for key, value in record.items() if not key.startswith("time/")} for record in other
    ]
    assert not (tmp_path / "without" / "tensorboard").exists()


def test_the_log_is_complete_before_the_run_ends(tmp_path):
    sink = TensorBoardSink(tmp_path / "tensorboard", "progress/examples", None, pytest.fail)
    sink.log({"progress/examples": 5, "train/loss": 0.5, "train/flag": True, "train/text": "x", "train/none": None}, 1)
    reader = read_back(tmp_path)  # the sink is still open
    assert {tag: reader.Scalars(tag)[0].value for tag in reader.Tags()["scalars"]} == {
        "progress/examples": 5.0, "train/loss": 0.5,
    }  # fmt: skip
    sink.finish({})


def test_a_file_that_a_crash_cut_short_is_read_up_to_there_and_gone_on_from(tmp_path):
    folder = tmp_path / "tensorboard"
    first = TensorBoardSink(folder, "progress/examples", None, pytest.fail)
    for step in (1, 2, 3):
        first.log({"progress/examples": step}, step)
    first.finish({})
    first.path.write_bytes(first.path.read_bytes()[:-5])
    second = TensorBoardSink(folder, "progress/examples", 3, pytest.fail)
    second.log({"progress/examples": 3}, 3)
    second.finish({})
    assert [event.step for event in read_back(tmp_path).Scalars("progress/examples")] == [1, 2, 3]
    assert struct.calcsize("<QI") == 12  # the header of a record, longer than what was cut off


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_ends_the_copy_with_one_line_and_not_the_run(tmp_path):
    said: list[str] = []
    sink = TensorBoardSink(tmp_path, "progress/examples", None, said.append)
    sink._writer._writer.close()
    sink._writer._writer = Path("/dev/full").open("wb")  # noqa: SIM115
    for step in (1, 2):
        sink.log({"progress/examples": step}, step)
    sink.finish({})
    (line,) = said
    assert line.startswith("TensorBoard's copy ends here (No space left on device: ")
    assert line.endswith("; the records are complete")


def test_without_tensorboard_there_is_one_line_before_anything_is_written(tmp_path):
    flags = ["train", "quadratic", "--tensorboard", "--out", str(tmp_path / "run")]
    done = python_without({"tensorboard"}, f"from rlgns.commands.cli import main; sys.exit(main({flags}))")
    assert done.returncode == 2
    assert done.stderr == "error: tensorboard is not installed; install it with: pip install 'rlgns[tensorboard]'\n"
    assert not (tmp_path / "run").exists()
