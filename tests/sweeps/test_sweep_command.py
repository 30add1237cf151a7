"""`rlgns sweep` with real processes: several run at once, none twice, and failures stay with their run."""

import os
import signal

import pytest
from support.processes import HANG, wait_until
from support.quadratic_sweeps import EASY, SLOW, count_events, start, sweep, sweep_file

from rlgns.commands.cli import main
from rlgns.study.outcomes import read_outcomes

FLAKY = """
import pathlib, sys
flags = dict(word[2:].split("=", 1) for word in sys.argv[1:])
out = pathlib.Path(flags["out"])
tries = len(list(out.parent.glob(f"{out.name}.try*")))
pathlib.Path(f"{out}.try{tries}").touch()
out.mkdir()
print("out of luck")
if tries < int(flags["failures"]):
    sys.exit(7)
(out / "summary.json").write_text('{"exit_code": 0}')
"""


def test_every_run_is_run_once_and_a_second_call_runs_nothing(tmp_path, capsys):
    path = sweep_file(tmp_path, {**EASY, "batch_size": {"values": [64, 128]}, "learning_rate": {"values": [0.1, 0.2]}})
    assert sweep(path, "--workers=2") == 0
    assert "4 finished" in capsys.readouterr().out
    assert count_events(tmp_path / "out", "started").total() == count_events(tmp_path / "out", "finished").total() == 4
    runs = read_outcomes([tmp_path / "out"])
    assert [(run.batch_size, run.learning_rate, run.state) for run in runs] == [
        (B, rate, "finished") for B in (64, 128) for rate in (0.1, 0.2)
    ]
    assert all(run.goals[0.1] for run in runs)
    assert (tmp_path / "out/sweep.yaml").read_text() == path.read_text()
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").rglob("metrics.jsonl")}
    assert sweep(path) == 0
    assert {file: file.stat().st_mtime_ns for file in before} == before
    assert count_events(tmp_path / "out", "started").total() == 4


def test_a_larger_grid_keeps_the_runs_that_exist(tmp_path):
    path = sweep_file(tmp_path, {**EASY, "learning_rate": {"value": 0.2}, "seed": {"values": [0, 1]}})
    assert sweep(path, "--workers=2") == 0
    sweep_file(tmp_path, {**EASY, "learning_rate": {"value": 0.2}, "seed": {"values": [0, 1, 2]}})
    assert sweep(path) == 0
    assert count_events(tmp_path / "out", "started") == {"seed=0": 1, "seed=1": 1, "seed=2": 1}


def test_workers_share_the_cores(tmp_path, monkeypatch):
    script = "import os, sys; print(sorted(os.sched_getaffinity(0)), os.environ['OMP_NUM_THREADS'])"
    path = sweep_file(tmp_path, {"seed": {"values": [0, 1]}}, command=["${interpreter}", "-c", script, "${args}"])
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        pytest.skip("a single core cannot be shared")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    sweep(path, "--workers=2")
    half = len(cores) // 2
    logs = {log.read_text() for log in (tmp_path / "out/logs").iterdir()}
    assert logs == {f"{cores[:half]} {half}\n", f"{cores[half:]} {len(cores) - half}\n"}


def test_a_number_of_threads_in_the_environment_holds_for_the_runs(tmp_path, monkeypatch):
    script = "import os; print(os.environ['OMP_NUM_THREADS'])"
    path = sweep_file(tmp_path, {"seed": {"value": 0}}, command=["${interpreter}", "-c", script, "${args}"])
    monkeypatch.setenv("OMP_NUM_THREADS", "17")
    sweep(path, "--workers=1")
    (log,) = (tmp_path / "out/logs").iterdir()
    assert log.read_text() == "17\n"


def test_a_failed_run_is_retried_and_then_given_up(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("rlgns.sweeps.jobs.LONGEST_PAUSE", 0.0)
    program = tmp_path / "flaky.py"
    program.write_text(FLAKY)
    path = sweep_file(
        tmp_path, {"failures": {"values": [0, 2, 9]}}, command=["${interpreter}", str(program), "${args}"]
    )
    assert sweep(path) == 1
    printed = capsys.readouterr()
    assert "2 finished, 1 failed" in printed.out
    assert "failures=9: given up, exit code 7 the last of 3 times: out of luck" in printed.err
    assert count_events(tmp_path / "out", "started") == {"failures=0": 1, "failures=2": 3, "failures=9": 3}
    assert sweep(path) == 1
    assert count_events(tmp_path / "out", "started")["failures=9"] == 3
    assert sweep(path, "--retries=9") == 0
    assert count_events(tmp_path / "out", "started")["failures=9"] == 10


def test_a_run_that_its_program_refuses_does_not_keep_the_others_from_starting(tmp_path, capsys):
    path = sweep_file(tmp_path, {**EASY, "batch_size": {"values": [20, 64, 12]}, "learning_rate": {"value": 0.2}})
    assert sweep(path) == 1
    printed = capsys.readouterr()
    assert (
        "batch_size=20: its program refuses the arguments: batch_size 20 is no multiple of 8; use --batch-size"
        in printed.err
    )
    assert "1 finished, 2 failed" in printed.out
    assert "batch_size=12 failed: batch_size 12 is no multiple of 8" in printed.out
    assert (tmp_path / "out/batch_size=64/summary.json").exists()
    assert set(count_events(tmp_path / "out", "started").values()) == {1}
    assert sweep(path) == 1  # a refused run is tried again, because the cause may have been corrected
    assert count_events(tmp_path / "out", "started") == {"batch_size=20": 2, "batch_size=64": 1, "batch_size=12": 2}


def test_a_beaten_rate_is_stopped_and_not_resumed(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("rlgns.sweeps.launcher.LOOK_SECONDS", 0.1)
    rates = {"learning_rate": {"values": [0.0001, 0.2]}, "log_every": {"value": 1}, "step_seconds": {"value": 0.01}}
    path = sweep_file(tmp_path, {**EASY, **rates})
    assert sweep(path) == 0
    assert "1 finished, 1 pruned" in capsys.readouterr().out
    pruned, beside = read_outcomes([tmp_path / "out"])
    assert (pruned.learning_rate, pruned.state, pruned.goals) == (0.0001, "stopped", {0.1: None})
    assert 2 * beside.goals[0.1].examples < pruned.examples < 40 * beside.goals[0.1].examples
    assert sweep(path) == 0
    assert count_events(tmp_path / "out", "started").total() == 2


def test_with_no_prune_every_run_finishes(tmp_path):
    rates = {"learning_rate": {"values": [0.0001, 0.2]}, "max_steps": {"value": 300}, "step_seconds": {"value": 0.01}}
    path = sweep_file(tmp_path, {**EASY, **rates})
    assert sweep(path, "--no-prune") == 0
    assert [run.state for run in read_outcomes([tmp_path / "out"])] == ["finished", "finished"]


def test_shards_run_every_run_once_between_them(tmp_path):
    path = sweep_file(tmp_path, {**EASY, "learning_rate": {"value": 0.2}, "seed": {"values": [0, 1, 2, 3, 4]}})
    with start(path, "--shard=2/2") as other:
        assert sweep(path, "--shard=1/2") == 0
        other.communicate(timeout=HANG)
    assert other.returncode == 0
    assert count_events(tmp_path / "out", "finished") == {f"seed={seed}": 1 for seed in range(5)}


def test_a_second_launcher_at_the_same_directory_is_refused(tmp_path, capsys):
    path = sweep_file(tmp_path, {**SLOW, "learning_rate": {"value": 0.01}})
    with start(path) as first:
        wait_until((tmp_path / "out/sweep.jsonl").exists)
        assert sweep(path) == 2
        assert "another launcher uses" in capsys.readouterr().err
        first.send_signal(signal.SIGTERM)
        first.communicate(timeout=HANG)
    assert first.returncode == 143


def test_a_random_search_ends_at_its_cap_and_continues_from_its_proposals(tmp_path, capsys):
    rate = {"learning_rate": {"distribution": "uniform", "min": 0.1, "max": 0.3}}
    path = sweep_file(tmp_path, {**EASY, **rate}, method="random", run_cap=2)
    assert sweep(path) == 0
    assert "2 finished" in capsys.readouterr().out
    assert sweep(path, "--max-runs=3") == 0
    assert set(count_events(tmp_path / "out", "started").values()) == {1}
    assert count_events(tmp_path / "out", "finished").total() == 3


def test_a_dry_run_prints_the_plan_and_starts_nothing(tmp_path, capsys):
    sizes = {"batch_size": {"values": [64, 128]}, "max_steps": {"value": 1000}}
    path = sweep_file(tmp_path, {**EASY, **sizes})
    assert sweep(path, "--dry-run", "--speed=100", "--workers=2") == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.split() == ["batch_size=64", "64", "64,000", "waiting"] for line in lines)
    assert "2 runs, 2 of them to do" in lines
    assert "at 100 examples/s a run: at most 16:00 min of 2 at once" in lines
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--workers=0"], "workers 0 is not positive"),
        (["--prune-factor=1"], "not above 1"),
        (["--prune-factor=nan"], "prune_factor nan is"),
        (["--shard=3/2"], "shard 3/2 is not I/N"),
        (["--retries=-1"], "retries -1 is negative"),
        (["--speed=-1"], "speed -1"),
    ],
)
def test_bad_flags_are_refused_in_one_line(flags, message, tmp_path, capsys):
    path = sweep_file(tmp_path, EASY)
    assert sweep(path, *flags) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_the_file_comes_first(capsys):
    assert main(["sweep", "--workers", "2"]) == 2
    assert "needs a file first" in capsys.readouterr().err
    assert main(["sweep", "missing.yaml"]) == 2
    assert "missing.yaml" in capsys.readouterr().err


def test_a_directory_that_cannot_be_written_to_is_refused(tmp_path, capsys):
    (tmp_path / "out").touch()
    assert sweep(sweep_file(tmp_path, EASY)) == 2
    assert "cannot be written to" in capsys.readouterr().err
