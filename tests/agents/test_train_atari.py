"""The command line from outside: exit codes, words, files; `whole_runs` starts the processes."""

import io
import json
import os
import pickle
import pty
import re
import select
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
import stable_baselines3
import torch
from support.environments import RandomWalks
from support.wandb_log import WandbLog, read_wandb_log
from support.whole_runs import TIMEOUT, Ended, run, start, start_anew, wait_until

import rlgns.runs.progress
from rlgns.agents.measuring import LOSSES
from rlgns.noise.history import TRAINED, History
from rlgns.noise.moment_records import measurement_from_record, noise_scale_record
from rlgns.noise.pooled import PooledMoments
from rlgns.runs.checkpoints import load_checkpoint
from rlgns.runs.directory import RunDirectory, read_config
from rlgns.runs.goals import goals_in_record
from rlgns.runs.progress import ProgressDisplay, Status
from rlgns.runs.records import columns, plain, read_lines, read_records
from rlgns.runs.run_report import detail_lines, read_report
from rlgns.runs.summary_numbers import summary_numbers
from rlgns.runs.wandb_rows import is_detail
from rlgns.study.outcomes import read_outcome

ONE_THREAD = ("--num-torch-threads", "1")
CARTPOLE = ("--env", "CartPole-v1", "--num-envs", "4", *ONE_THREAD)
FOR_EVER = ("--total-transitions", "100000000", "--log-every", "1")
WHOLE = (
    *CARTPOLE, "--num-steps", "8", "--total-transitions", "1600", "--measure-every", "4", "--window", "3",
    "--design-effect-every", "2", "--by-layer", "--preconditioned", "--wandb", "offline", "--wandb-tags", "a", "b",
    "--out", "run",
)  # fmt: skip


def steps_of(run_dir: Path) -> list[float]:
    return columns(read_records(run_dir / "metrics.jsonl"), "progress/steps")[0].tolist()


def has_records(run_dir: Path, count: int) -> bool:
    path = run_dir / "metrics.jsonl"
    return path.exists() and len(read_lines(path)[0]) >= count


def wandb_logs(run_dir: Path) -> list[WandbLog]:
    return [read_wandb_log(path) for path in sorted(run_dir.glob("wandb/offline-run-*/run-*.wandb"))]


def assert_finite(state) -> None:
    assert all(torch.isfinite(value).all() for value in state["policy"].values())


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Path, Ended]:
    folder = tmp_path_factory.mktemp("whole")
    return folder / "run", run(folder, *WHOLE)


# A whole run


def test_a_run_leaves_its_files_and_prints_its_summary(whole):
    run_dir, ended = whole
    assert ended.exit_code == 0, ended.err
    names = {path.name for path in run_dir.iterdir()}
    files = {"config.json", "metrics.jsonl", "checkpoint.pt", "summary.json", "noise_scale.png", "noise_scale.svg"}
    assert names == files | {".lock", "wandb"}
    lines = ended.out.splitlines()
    ending = r"Finished: mean return [\d.]+ after [\d,]+ transitions, 0:\d\d min\. run \(noise_scale.png\)"
    assert re.match(ending, " ".join(ended.out.split()))
    assert "4 environments × 8 steps = 32 transitions" in " ".join(ended.out.split())
    assert lines[-1] == "Details by loss: rlgns show run"
    details = detail_lines(read_report(run_dir))
    assert details[0] == "Gradient noise scale tr Σ/|G|² in transitions, 95 % intervals, by environment"
    counts = {line.split()[0]: line.split()[-1] for line in details[3:7]}
    assert counts == {"policy": "13", "value": "13", "total": "13", TRAINED: "13"}  # the last in every fourth update
    assert not list((run_dir.parent / "home").rglob("*.wandb"))


def test_without_a_terminal_there_are_plain_lines(whole):
    _, ended = whole
    assert ended.err.splitlines()[-1] == "A2C on CartPole-v1, 4 × 8, seed 0 → run"
    assert re.fullmatch(r"W&B is offline \(as asked\); upload later with: wandb sync .*\n.*\n", ended.err)
    assert "\x1b" not in ended.err + ended.out
    assert "Warning" not in ended.err


def test_every_record_is_in_the_wandb_log_with_the_same_numbers(whole):
    run_dir, _ = whole
    (log,) = wandb_logs(run_dir)
    in_file = [{k: v for k, v in row.items() if v is not None} for row in read_records(run_dir / "metrics.jsonl")]
    rows = [row for row in log.records if "progress/steps" in row]
    assert rows[: len(in_file)] == in_file
    assert [row["_step"] for row in log.rows][: len(in_file)] == [row["progress/steps"] for row in in_file]
    assert sum("figures/noise_scale" in row for row in log.rows) == 1
    assert log.exit_code == 0
    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary.items() >= {"progress/steps": 50, "exit_code": 0}.items()
    for key, value in summary.items():
        if value is not None and not key.startswith("progress/") and not is_detail(key):
            assert log.summary[key] == value, key
    assert not [key for key in log.summary if is_detail(key)]


def test_measured_and_every_tenth_updates_leave_a_record(whole):
    measured = set(range(1, 51, 4))
    assert set(steps_of(whole[0])) == measured | set(range(10, 51, 10))
    records = read_records(whole[0] / "metrics.jsonl")
    assert {row["progress/steps"] for row in records if "policy" in measurement_from_record(row)} == measured
    assert sum(row.get(f"noise/{TRAINED}/sum/count", 0) for row in records) == 13  # of every fourth update
    for row in records:
        assert row["progress/transitions"] == 32 * row["progress/steps"]
        assert row["progress/optimizer_steps"] == row["progress/steps"]
        assert "progress/frames" not in row
        assert row["train/value_loss"] > 0


def test_the_noise_scale_in_a_record_follows_from_the_moments_in_the_records(whole):
    records = read_records(whole[0] / "metrics.jsonl")
    num_checked = 0
    for i, record in enumerate(records):
        history = History.from_records(records[: i + 1])
        for name in measurement_from_record(record):
            window = history.noise_scale(name, last=3)
            expected = plain(noise_scale_record(name, window))
            assert {key: record[key] for key in expected} == expected
            moments = history.moments(name)[-1]
            count = moments.count if isinstance(moments, PooledMoments) else 1
            assert record[f"noise/{name}/trace_covariance"] == pytest.approx(moments.trace_covariance / count)
            num_checked += 1
        if "policy" in measurement_from_record(record):
            effect = plain({"": history.design_effect("policy", last=3).point})[""]
            assert record["noise/policy/design_effect"] == effect
            assert record["noise/unit"] == "environment"
    names = [set(measurement_from_record(record)) for record in records]
    assert num_checked == sum(len(found) for found in names)
    names = [found for found in names if found - {TRAINED}]
    assert ["policy/by_transition" in found for found in names] == [i % 2 == 0 for i in range(13)]
    assert all({*LOSSES, "value/layer/value_net"} <= found for found in names)
    assert ["policy/preconditioned" in found for found in names] == [False] + [True] * 12  # none before a first step


def test_the_summary_follows_from_the_records(whole):
    summary = json.loads((whole[0] / "summary.json").read_text())
    history = History.from_records(read_records(whole[0] / "metrics.jsonl"))
    expected = summary_numbers(history, LOSSES, 32)
    assert {key: summary[key] for key in expected} == expected
    assert summary["noise/num_measurements"] == 13
    assert summary["rollout/episodes"] > 0


def test_figures_are_images(whole):
    assert (whole[0] / "noise_scale.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (whole[0] / "noise_scale.svg").read_text()


def test_the_configuration_tells_settings_versions_commit_and_device(whole):
    config = read_config(whole[0])
    options = config["options"]
    assert (options["env"], options["num_envs"], options["num_steps"], options["seed"]) == ("CartPole-v1", 4, 8, 0)
    assert (options["learning_rate"], options["wandb_tags"]) == (7e-4, ["a", "b"])
    assert (config["batch_size"], config["device"], config["num_torch_threads"]) == (32, "cpu", 1)
    assert config["resumptions"] == []
    made_by = config["provenance"]
    assert "--measure-every 4" in made_by["command"]
    assert made_by["versions"]["stable-baselines3"] == stable_baselines3.__version__
    assert "git_commit" in made_by
    (log,) = wandb_logs(whole[0])
    assert log.run.run_id == config["wandb_run_id"]
    assert log.config.items() >= {"env": "CartPole-v1", "num_envs": 4, "batch_size": 32, "device": "cpu"}.items()
    assert list(log.run.tags) == ["a", "b"]
    assert (log.run.run_group, log.run.display_name) == ("CartPole-v1-a2c", "run")


def test_the_checkpoint_at_the_end_is_that_of_the_last_update(whole):
    state = load_checkpoint(whole[0] / "checkpoint.pt")
    assert (state["num_updates"], state["num_optimizer_steps"]) == (50, 50)
    assert_finite(state)


@pytest.mark.slow
def test_an_atari_run_by_ppo_counts_frames_and_finds_a_directory_of_its_own(tmp_path):
    ended = run(
        tmp_path, "--game", "Pong", "--algo", "ppo", "--num-envs", "4", "--num-steps", "8", "--num-epochs", "1",
        "--total-transitions", "128", "--measure-every", "2", "--num-threads", "1", "--wandb", "disabled", *ONE_THREAD,
    )  # fmt: skip
    assert ended.exit_code == 0, ended.err
    (run_dir,) = (tmp_path / "runs").iterdir()
    assert re.fullmatch(r"pong-ppo-\d{8}-\d{6}", run_dir.name)
    assert not (run_dir / "wandb").exists()
    records = read_records(run_dir / "metrics.jsonl")
    assert [row["progress/steps"] for row in records] == [1, 2, 3, 4]
    assert [row["progress/frames"] for row in records] == [128, 256, 384, 512]
    assert [row["progress/optimizer_steps"] for row in records] == [4, 8, 12, 16]
    assert [bool(measurement_from_record(row)) for row in records] == [True, False, True, False]
    assert read_config(run_dir)["options"]["game"] == "pong"


# Goals

GOALS = (*CARTPOLE, "--no-measure", "--wandb", "disabled", "--episode-window", "10", "--log-every", "1000000")


def test_the_last_goal_ends_a_run_and_what_each_took_is_recorded(tmp_path):
    ended = run(tmp_path, *GOALS, "--goals", "20", "40", "--total-transitions", "100000", "--out", "run")
    assert ended.exit_code == 0, ended.err
    records = read_records(tmp_path / "run" / "metrics.jsonl")
    reached = {level: (row, took) for row in records for level, took in goals_in_record(row).items()}
    assert list(reached) == [20, 40]
    for row, took in reached.values():
        progress = row["progress/steps"], row["progress/optimizer_steps"], row["progress/transitions"]
        assert (took.steps, took.optimizer_steps, took.examples) == progress
        assert row["progress/examples"] == row["progress/transitions"]
    assert reached[40][0]["rollout/episode_return"] >= 40
    assert records[-1] == reached[40][0]
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert goals_in_record(summary) == {level: took for level, (_, took) in reached.items()}
    assert summary["progress/steps"] == reached[40][1].steps
    assert re.search(rf"goal 40: {reached[40][1].steps:,} updates, ", ended.out)
    outcome = read_outcome(tmp_path / "run")
    assert (outcome.batch_size, outcome.shape, outcome.state) == (20, (4, 5), "finished")
    assert outcome.noted_goals == goals_in_record(summary)
    assert 0 < outcome.goals[20].steps < outcome.noted_goals[20].steps  # the mean of games lags
    assert outcome.task == "A2C on CartPole-v1"


def test_a_goal_that_was_not_reached_is_null_and_a_resumed_run_knows_those_that_were(tmp_path):
    ended = run(tmp_path, *GOALS, "--goals", "1", "500", "--total-transitions", "1000", "--out", "run")
    assert "goal 500: not reached" in ended.out
    first = goals_in_record(json.loads((tmp_path / "run" / "summary.json").read_text()))
    assert first[500] is None
    ended = run(tmp_path, "--resume", "run", "--total-transitions", "2000")
    assert ended.exit_code == 0, ended.err
    assert goals_in_record(json.loads((tmp_path / "run" / "summary.json").read_text())) == first
    assert sum(bool(goals_in_record(row)) for row in read_records(tmp_path / "run" / "metrics.jsonl")) == 1


# Bad input: one line, exit code 2


def assert_refused(ended: Ended, words: str) -> None:
    assert ended.exit_code == 2, ended.err
    assert len(ended.err.splitlines()) == 1, ended.err
    assert ended.err.startswith("error: ")
    assert words in ended.err
    assert ended.out == ""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--game", "breakuot"], "unknown game 'breakuot'; did you mean breakout"),
        (["--env", "CartPoal-v1", "--num-envs", "4"], "environment 'CartPoal-v1' cannot be made"),
        (["--env", "CartPole-v1", "--num-envs", "6", "--num-groups", "4"], "use one of [2, 3, 6]"),
        (["--env", "CartPole-v1", "--num-envs", "1"], "use --num-envs 4, or --unit transition"),
        (["--num-envs", "0"], "num_envs 0 is out of range; give --num-envs from 1"),
        (["--algo", "ppo", "--num-minibatches", "3"], "use --num-minibatches 2 or 4"),
        ([*CARTPOLE, "--out", "file/run"], "cannot be written to (Not a directory); choose another --out"),
        ([*CARTPOLE, "--out", "/proc/run"], "cannot be written to"),
        (["--resume", "nothing"], "nothing holds no run to resume"),
        (["--config", "nothing.yaml"], "--config nothing.yaml cannot be read"),
    ],
)
def test_bad_input_is_one_line_with_the_remedy_and_exit_code_2(arguments, words, tmp_path):
    (tmp_path / "file").touch()
    assert_refused(run(tmp_path, *arguments), words)
    assert {path.name for path in tmp_path.iterdir()} == {"file", "home", "stdout", "stderr"}  # nothing was made


def test_the_command_in_an_interpreter_of_its_own_refuses_the_same_way(tmp_path):
    process = start_anew(tmp_path, "--game", "breakuot", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, err = process.communicate(timeout=TIMEOUT)
    assert_refused(Ended(process.returncode, out.decode(), err.decode()), "did you mean breakout")


def test_a_flag_that_does_not_exist_is_met_with_the_nearest(tmp_path):
    ended = run(tmp_path, "--num-enves", "8")
    assert ended.exit_code == 2
    assert "--num-envs" in ended.err
    assert "Traceback" not in ended.err


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the device that is asked for")
def test_a_device_that_is_absent_is_refused(tmp_path):
    assert_refused(run(tmp_path, *CARTPOLE, "--device", "cuda"), "device cuda is not available here; use --device auto")


def test_a_directory_that_is_taken_is_refused(whole, tmp_path):
    assert_refused(run(tmp_path, *CARTPOLE, "--out", str(whole[0])), "already holds a run; continue it with --resume")
    with RunDirectory(tmp_path / "busy"):
        assert_refused(run(tmp_path, *CARTPOLE, "--out", "busy"), "busy is in use by another process")


def test_a_run_that_another_process_is_at_is_not_resumed(whole, tmp_path):
    copy = shutil.copytree(whole[0], tmp_path / "copy", ignore=shutil.ignore_patterns("wandb"))
    with RunDirectory(copy, resume=True):
        assert_refused(run(tmp_path, "--resume", "copy", "--total-transitions", "3200"), "in use by another process")


def test_a_finished_run_is_not_resumed_but_longer(whole, tmp_path):
    assert_refused(
        run(tmp_path, "--resume", str(whole[0])), "has its 50 updates already; give a larger --total-transitions"
    )


def test_a_resumed_run_keeps_its_number_of_environments(whole, tmp_path):
    ended = run(tmp_path, "--resume", str(whole[0]), "--num-envs", "8")
    assert_refused(ended, "num_envs 8 cannot be changed in a run that is resumed (it has 4)")


class Bomb:
    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("kind", ["missing", "cut", "pickle", "torch pickle", "sb3", "another network"])
def test_a_checkpoint_that_is_not_the_runs_is_refused_and_never_executed(kind, whole, tmp_path):
    copy = shutil.copytree(whole[0], tmp_path / "copy", ignore=shutil.ignore_patterns("wandb"))
    path, marker, words = copy / "checkpoint.pt", tmp_path / "went_off", "not a checkpoint that this project wrote"
    match kind:
        case "missing":
            path.unlink()
            words = "checkpoint.pt is missing"
        case "cut":
            path.write_bytes(path.read_bytes()[:5000])
        case "pickle":
            path.write_bytes(pickle.dumps(Bomb(marker)))
        case "torch pickle":
            torch.save({"format": "rlgns checkpoint 1", "policy": Bomb(marker)}, path)
        case "sb3":
            stable_baselines3.A2C("MlpPolicy", RandomWalks(4, seed=0), device="cpu").save(tmp_path / "model.zip")
            (tmp_path / "model.zip").replace(path)
        case "another network":
            state = load_checkpoint(path)
            state["policy"]["action_net.weight"] = torch.zeros(7, 64)
            torch.save(state, path)
            words = "the checkpoint holds another network's parameters"
    assert_refused(run(tmp_path, "--resume", "copy", "--total-transitions", "3200"), words)
    assert not marker.exists()


# What ends a run early


@pytest.mark.slow
def test_sigterm_ends_the_run_in_good_order_and_resume_continues_it(tmp_path):
    run_dir = tmp_path / "run"
    options = ("--algo", "ppo", "--num-steps", "16", "--num-epochs", "1", "--measure-every", "3", "--wandb", "offline")
    started = start(tmp_path, *CARTPOLE, *options, *FOR_EVER, "--out", "run")
    wait_until(lambda: has_records(run_dir, 4))
    os.kill(started.pid, signal.SIGTERM)
    ended = started.end()
    assert ended.exit_code == 143, ended.err
    assert "stopping after this step" in ended.err
    stopped_at = load_checkpoint(run_dir / "checkpoint.pt")["num_updates"]
    assert f"stopped after update {stopped_at}; continue with --resume run" in ended.out
    assert ended.out.startswith("Stopped: ")
    assert steps_of(run_dir) == list(range(1, stopped_at + 1))  # the last update is recorded
    assert json.loads((run_dir / "summary.json").read_text())["exit_code"] == 143
    assert (run_dir / "noise_scale.png").exists()

    total = (stopped_at + 5) * 64
    ended = run(tmp_path, "--resume", "run", "--total-transitions", str(total))
    assert ended.exit_code == 0, ended.err
    assert f"resuming after update {stopped_at}; environments start fresh episodes" in ended.err
    assert steps_of(run_dir) == list(range(1, stopped_at + 6))
    transitions, seconds = columns(read_records(run_dir / "metrics.jsonl"), "progress/transitions", "time/seconds")
    assert transitions[-1] == total
    assert (seconds[1:] > seconds[:-1]).all()
    measured = [
        row["progress/steps"] for row in read_records(run_dir / "metrics.jsonl") if measurement_from_record(row)
    ]
    assert measured == [step for step in range(1, stopped_at + 6) if step % 3 == 1]
    first, second = wandb_logs(run_dir)
    assert first.run.run_id == second.run.run_id == read_config(run_dir)["wandb_run_id"]
    assert first.exit_code == 143
    assert second.exit_code == 0
    in_wandb = [row["_step"] for log in (first, second) for row in log.rows if "train/loss" in row]
    assert in_wandb == steps_of(run_dir)


@pytest.mark.slow
def test_on_a_terminal_there_is_a_live_line_and_ctrl_c_stops_in_good_order(tmp_path):
    main, terminal = pty.openpty()
    options = {"stdin": terminal, "stdout": terminal, "stderr": terminal, "start_new_session": True}
    arguments = (*CARTPOLE, "--num-steps", "8", *FOR_EVER, "--measure-every", "2", "--wandb", "offline", "--out", "run")
    process = start_anew(tmp_path, *arguments, on_terminal=True, **options)
    os.close(terminal)
    shown = b""
    interrupted = False
    while select.select([main], [], [], TIMEOUT)[0]:
        try:
            shown += os.read(main, 65536)
        except OSError:  # the other end is closed
            break
        if not interrupted and b"transitions/s" in shown and has_records(tmp_path / "run", 5):
            os.write(main, b"\x03")  # to the whole foreground group, W&B's process included
            interrupted = True
    os.close(main)
    assert process.wait(TIMEOUT) == 130
    text = shown.decode()
    assert "\x1b[" in text
    assert "━" in text  # the bar
    assert re.search(r"transitions/s · (return|no episode)", text)
    assert "stopping after this step; Ctrl-C once more to end at once" in text
    assert "stopped after update" in text
    assert "Traceback" not in text
    (log,) = wandb_logs(tmp_path / "run")
    assert log.exit_code == 130
    assert [row["_step"] for row in log.rows if "train/policy_loss" in row] == steps_of(tmp_path / "run")


def test_without_a_terminal_a_line_comes_every_ten_seconds(monkeypatch):
    seconds = iter([0.0, 5.0, 10.0, 10.0, 15.0, 21.0, 21.0])
    monkeypatch.setattr(rlgns.runs.progress.time, "monotonic", lambda: next(seconds))
    stream = io.StringIO()
    with ProgressDisplay(10_000, "transitions", stream) as display:  # at 0
        for transitions in (100, 2000, 3000, 4000):  # at 5, 10, 15, 21
            display.show(Status(transitions, 100.0, "return 12.3", "policy 50 [20, ∞)"))
    assert stream.getvalue().splitlines() == [
        "2,000/10,000 · 100 transitions/s · return 12.3 · noise scale policy 50 [20, ∞) · 0:01:20 left",
        "4,000/10,000 · 100 transitions/s · return 12.3 · noise scale policy 50 [20, ∞) · 0:01:00 left",
    ]


def test_kill_9_loses_at_most_what_came_since_the_last_checkpoint(tmp_path):
    run_dir = tmp_path / "run"
    options = ("--checkpoint-seconds", "0.2", "--wandb", "disabled", "--measure-every", "2", "--out", "run")
    started = start(tmp_path, *CARTPOLE, *options, *FOR_EVER)
    wait_until(lambda: has_records(run_dir, 60) and load_checkpoint(run_dir / "checkpoint.pt")["num_updates"] > 0)
    os.kill(started.pid, signal.SIGKILL)
    assert started.end().exit_code == -9
    saved_at = load_checkpoint(run_dir / "checkpoint.pt")["num_updates"]
    recorded = steps_of(run_dir)
    assert recorded == list(range(1, len(recorded) + 1))
    assert 0 < saved_at <= len(recorded)
    ended = run(tmp_path, "--resume", "run", "--total-transitions", str((saved_at + 5) * 20))
    assert ended.exit_code == 0, ended.err
    assert f"resuming after update {saved_at}" in ended.err
    assert steps_of(run_dir) == list(range(1, saved_at + 6))


def test_a_learning_rate_far_too_large_ends_in_one_line_and_leaves_a_good_checkpoint(tmp_path):
    ended = run(tmp_path, *CARTPOLE, "--learning-rate", "1e30", "--wandb", "disabled", "--out", "run")
    assert ended.exit_code == 1, ended.err
    assert len(ended.error_lines) == 1, ended.err
    words = r"error: training diverged at update \d+: .*; the last checkpoint is kept; try a smaller --learning-rate"
    assert re.fullmatch(words, ended.error_lines[0])
    assert_finite(load_checkpoint(tmp_path / "run" / "checkpoint.pt"))


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 500 KB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=500k", "tmpfs", folder], capture_output=True, text=True, check=False
    )
    if made.returncode:
        pytest.skip(f"no file system can be mounted here: {made.stderr.strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.slow
def test_a_full_disk_ends_in_one_line_and_costs_nothing_that_was_recorded(small_disk, tmp_path):
    run_dir = small_disk / "run"
    options = ("--checkpoint-seconds", "1", "--wandb", "disabled", "--measure-every", "1")
    ended = run(tmp_path, *CARTPOLE, *options, *FOR_EVER, "--out", str(run_dir))
    assert ended.exit_code == 1, ended.err
    assert len(ended.error_lines) == 1, ended.err
    words = r"error: .*(No space left|could not be written).*run/.*; what was recorded stays, continue with --resume"
    assert re.fullmatch(words, ended.error_lines[0])
    lines, unreadable = read_lines(run_dir / "metrics.jsonl")
    assert unreadable <= 1  # the one being written
    assert [line["progress/steps"] for line in lines] == list(range(1, len(lines) + 1))
    assert len(lines) > 20
    saved_at = load_checkpoint(run_dir / "checkpoint.pt")["num_updates"]
    read_config(run_dir)

    subprocess.run(["mount", "-o", "remount,size=20m", small_disk], check=True)
    ended = run(tmp_path, "--resume", str(run_dir), "--total-transitions", str((saved_at + 3) * 20))
    assert ended.exit_code == 0, ended.err
    assert steps_of(run_dir) == list(range(1, saved_at + 4))


def test_a_disk_full_from_the_start_ends_in_one_line(small_disk, tmp_path):
    (small_disk / "ballast").write_bytes(bytes(480 * 1024))
    ended = run(tmp_path, *CARTPOLE, "--wandb", "disabled", "--out", str(small_disk / "run"))
    assert ended.exit_code in {1, 2}, ended.err
    assert len(ended.error_lines) == 1, ended.err
