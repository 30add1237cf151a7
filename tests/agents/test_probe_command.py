"""`rlgns probe` from a run to its records, figure and words."""

import json
import shutil
import signal
import subprocess
import sys

import pytest
from support.whole_runs import TIMEOUT, environment

from rlgns.agents.cli import main as train
from rlgns.commands.cli import main
from rlgns.runs.records import read_records

RUN = (
    "--env", "CartPole-v1", "--algo", "ppo", "--num-envs", "8", "--num-steps", "16", "--num-minibatches", "4",
    "--total-transitions", "2048", "--wandb", "disabled", "--num-torch-threads", "1", "--keep-checkpoints", "2",
)  # fmt: skip
BRIEF = ("--num-envs", "16", "--max-transitions", "6000", "--num-torch-threads", "1")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("probe") / "run"
    assert train([*RUN, "--out", str(folder)]) == 0
    return folder


def test_a_probe_prints_and_records_every_loss_of_the_chosen_checkpoints(run, tmp_path, capsys):
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.suffix in (".pt", ".json")}
    file = tmp_path / "probe.json"
    assert main(["probe", str(run), "--checkpoint", "all", *BRIEF, "--json", str(file)]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert out.count("the policy frozen") == 3
    assert "environments × 16" in " ".join(out.split())
    records = read_records(run / "probe.jsonl")
    assert records == json.loads(file.read_text())
    names = [(record["probe/checkpoint"], record["probe/loss"]) for record in records]
    assert names == [(name, loss) for name in ("1024", "2048", "last") for loss in ("policy", "value", "total")]
    for record in records:
        assert record["progress/transitions"] == (1024 if record["probe/checkpoint"] == "1024" else 2048)
        assert (record["probe/num_envs"], record["probe/num_steps"]) == (16, 16)
        assert record["probe/transitions"] == record["probe/num_rollouts"] * 256 <= 6000
        if record["probe/noise_scale"] is not None:
            ratio = record["probe/trace_covariance"] / record["probe/sq_norm"]
            assert record["probe/noise_scale"] == pytest.approx(ratio)
    last, same = records[6:], records[3:6]  # the last kept checkpoint is the state at the end
    assert [record["probe/sq_norm"] for record in last] == [record["probe/sq_norm"] for record in same]
    assert {path.name: path.read_bytes() for path in run.iterdir() if path.name in before} == before


def test_the_surface_has_a_row_for_every_length_and_a_figure(run, capsys):
    assert main(["probe", str(run), "--surface", *BRIEF]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    rows = [record for record in read_records(run / "probe.jsonl") if "surface/num_steps" in record]
    lengths = [(loss, length) for loss in ("policy", "total") for length in (2, 4, 8, 16, 32)]
    assert [(row["surface/loss"], row["surface/num_steps"]) for row in rows] == lengths
    for row in rows:
        assert row["surface/num_rollouts"] * row["surface/num_steps"] * 16 == row["surface/transitions"]
    assert rows[-1]["surface/cosine"] == pytest.approx(1)  # of the longest with itself
    assert rows[-2]["surface/cosine"] != pytest.approx(1)
    assert (run / "probe_surface.png").stat().st_size > 10_000


def test_trial_steps_are_printed_and_recorded_by_loss_and_batch(run, capsys):
    flags = ("--max-transitions", "3000", "--num-torch-threads", "1", "--num-envs", "32")
    assert main(["probe", str(run), "--trials", *flags]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert "Trial steps, judged on" in " ".join(out.split())
    rows = [record for record in read_records(run / "probe.jsonl") if "trial/loss" in record]
    sizes = [16, 32, 64, 128, 256]
    assert [(row["trial/loss"], row["trial/batch_size"]) for row in rows] == [
        (loss, size) for loss in ("policy", "total") for size in sizes
    ]
    for row in rows:
        assert f"{row['trial/gain']:.2g}" in out
    assert (run / "probe_trials.png").stat().st_size > 10_000


def test_trial_updates_are_printed_recorded_and_drawn(run, capsys):
    flags = ("--max-transitions", "3000", "--num-torch-threads", "1", "--num-envs", "32")
    assert main(["probe", str(run), "--updates", *flags]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert "Trial updates, judged on" in out
    rows = [record for record in read_records(run / "probe.jsonl") if "update/loss" in record]
    settings = {(row["update/num_envs"], row["update/num_epochs"], row["update/num_minibatches"]) for row in rows}
    assert {(8, 4, 4), (4, 4, 4), (16, 4, 4), (8, 1, 4), (8, 8, 4), (8, 4, 1), (8, 4, 16)} <= settings
    for row in rows:
        if row["update/loss"] == "total":
            assert f"{row['update/gain']:.2g} ± " in out
    assert (run / "probe_updates.png").stat().st_size > 10_000


def test_the_records_of_a_surface_are_kept_if_its_figure_cannot_be_written(run, tmp_path, capsys):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    (copy / "probe.jsonl").unlink(missing_ok=True)
    (copy / "probe_surface.png").unlink(missing_ok=True)
    (copy / "probe_surface.png").mkdir()
    assert main(["probe", str(copy), "--surface", *BRIEF]) == 1
    assert len([record for record in read_records(copy / "probe.jsonl") if "surface/num_steps" in record]) == 10
    assert "probe_surface.png" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "which run?"),
        (["nowhere"], "nowhere does not exist"),
        (["RUN", "--precision", "0"], "precision 0"),
        (["RUN", "--num-envs", "2"], "num_envs 2 is too few"),
        (["RUN", "--trials", "--num-envs", "16"], "num_envs 16 is too few for trial steps"),
        (["RUN", "--updates", "--num-envs", "16"], "num_envs 16 is too few for trial steps"),
        (["RUN", "--checkpoint", "first"], "checkpoint 'first' is neither last nor all"),
        (["RUN", "--presicion", "1"], "--precision"),
        (["RUN/checkpoints"], "holds no run"),
    ],
)
def test_bad_input_gets_one_line(run, arguments, reason, capsys):
    words = [word.replace("RUN", str(run)) for word in arguments]
    assert main(["probe", *words]) == 2
    error = capsys.readouterr().err
    assert reason in error
    assert len(error.strip().splitlines()) == 1


@pytest.mark.slow
def test_ctrl_c_ends_a_probe_with_what_is_known(run, tmp_path):
    started = subprocess.Popen(
        [sys.executable, "-m", "rlgns", "probe", str(run), "--precision", "1e-9", "--max-transitions", "1000000000"],
        env=environment(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while "transitions/s" not in started.stderr.readline():  # a line every ten seconds
        pass
    started.send_signal(signal.SIGINT)
    out, err = started.communicate(timeout=TIMEOUT)
    assert started.returncode == 130, err
    assert "the policy frozen" in out
