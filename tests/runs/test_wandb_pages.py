"""What a run's page in W&B shows: few panels and summary keys, the model on request, and an alert on failure."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.processes import HANG, child_environment, wait_until
from support.small_task import LogisticRegression
from support.small_task import run as run_small_task
from support.wandb_log import WandbLog, read_wandb_log
from support.wandb_server import wandb_server
from test_sinks import KEY, PROMPT, home, no_process_left  # noqa: F401  # fixtures of every test here

from rlgns.commands.cli import main
from rlgns.runs.records import read_records
from rlgns.runs.task import DivergenceError
from rlgns.runs.wandb_options import WandbOptions
from rlgns.runs.wandb_rows import is_detail
from rlgns.runs.wandb_sink import open_wandb

AGENT = ("train", "atari", "--env", "CartPole-v1", "--algo", "ppo", "--num-envs", "4", "--num-steps", "8")
LENGTH = ("--total-transitions", "1600", "--num-torch-threads", "1")


def folder_of(run: Path, job: str = "offline-run") -> Path:
    (folder,) = run.glob(f"wandb/{job}-*")
    return folder


def log_of(run: Path) -> WandbLog:
    (path,) = folder_of(run).glob("run-*.wandb")
    return read_wandb_log(path)


@pytest.fixture(scope="module")
def agent(tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("pages") / "a run"
    assert main([*AGENT, *LENGTH, "--by-layer", "--wandb", "offline", "--wandb-artifacts", "--out", str(run)]) == 0
    return run


def test_panels_and_summary_have_few_keys_and_the_rows_have_all(agent):
    log = log_of(agent)
    keys = {
        key for record in read_records(agent / "metrics.jsonl") for key, value in record.items() if value is not None
    }
    assert len(keys) > 150
    assert keys <= set().union(*log.rows)
    assert log.hidden == {key for key in keys if is_detail(key)}
    visible = keys - log.hidden
    assert len(visible) < 35
    assert visible >= {"rollout/episode_return", "progress/transitions", "time/transitions_per_second", "train/loss"}
    losses = ("policy", "value", "total")
    assert {key for key in visible if key.startswith("noise/")} <= {
        f"noise/{loss}/noise_scale{end}" for loss in losses for end in ("", "_low", "_high")
    }
    assert {f"noise/{loss}/noise_scale_low" for loss in losses} <= visible


def test_w_and_b_s_own_process_sums_up_what_is_no_detail(agent, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    records = read_records(agent / "metrics.jsonl")
    with wandb_server(KEY) as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        sink = open_wandb(WandbOptions(), tmp_path / "online", {}, "id", say=pytest.fail)
        for record in records:
            sink.log(record, record["progress/steps"])
        sink.finish(json.loads((agent / "summary.json").read_text()))
    summary = {key for key in server.runs["id"].summary if not key.startswith("_")}
    assert not [key for key in summary if is_detail(key)]
    assert summary >= {key for record in records for key in record if record[key] is not None and not is_detail(key)}
    assert {"noise/total/late/noise_scale_low", "exit_code"} <= summary
    assert len(summary) < 45


def test_every_panel_has_transitions_as_its_x_axis(agent):
    log = log_of(agent)
    assert log.metrics["*"] == "progress/transitions"
    assert {log.metrics[key.replace(".", "\\.")] for key in log.hidden} == {"progress/transitions"}


def test_the_model_s_files_are_an_artifact_that_export_takes(agent, tmp_path, capsys):
    log = log_of(agent)
    ((kind, name, files),) = log.artifacts
    assert (kind, name) == ("model", f"model-{log.run.run_id}")
    assert files == ["checkpoint.pt", "config.json", "summary.json"]
    staged = {path.read_bytes() for path in (agent / "wandb").rglob("*") if path.is_file() and "staging" in str(path)}
    assert (agent / "checkpoint.pt").read_bytes() in staged
    for file in files:  # as somebody has it who has downloaded the artifact
        (tmp_path / file).write_bytes((agent / file).read_bytes())
    assert main(["export", str(tmp_path), str(tmp_path / "model.zip")]) == 0


def test_without_the_flag_there_is_no_artifact_and_under_a_sweep_the_summary_is_whole(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep")  # whose metric may be any key
    run = tmp_path / "run"
    assert main([*AGENT, *LENGTH, "--wandb", "offline", "--out", str(run)]) == 0
    log = log_of(run)
    assert log.artifacts == []
    assert log.hidden
    summary = {key: value for key, value in json.loads((run / "summary.json").read_text()).items() if value is not None}
    assert log.summary.items() >= {key: summary[key] for key in summary if key.startswith("noise/")}.items()


def test_a_probe_s_records_are_an_artifact_of_its_run(agent, capsys):
    before = set(agent.glob("wandb/offline-run-*"))
    assert main(["probe", str(agent), "--num-envs", "8", "--max-transitions", "1000"]) == 0
    (folder,) = set(agent.glob("wandb/offline-run-*")) - before
    (path,) = folder.glob("run-*.wandb")
    artifacts = read_wandb_log(path).artifacts
    assert [artifact for artifact in artifacts if artifact[0] != "run_table"] == [
        ("probe", "a-run-probe", ["probe.jsonl"])
    ]
    for file in folder.rglob("*"):  # the run's own folder is again the only one
        if file.is_file():
            file.unlink()
    folder.rename(agent.parent / "probe")


class Diverging(LogisticRegression):
    def step(self):
        if self.steps == 5:
            raise DivergenceError("the loss is nan")
        return super().step()


def test_a_run_that_diverges_sends_an_alert_and_keeps_its_model(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("support.small_task.LogisticRegression", Diverging)
    assert run_small_task(tmp_path / "run", wandb="offline", wandb_artifacts=True) == 1
    ((level, title, text),) = log_of(tmp_path / "run").alerts
    assert (level, title) == ("ERROR", "logistic regression failed")
    assert text.startswith("training diverged at update 6: the loss is nan")
    assert log_of(tmp_path / "run").artifacts[0][2] == ["checkpoint.pt", "config.json", "summary.json"]
    assert len(read_records(tmp_path / "run" / "metrics.jsonl")) == 5


def test_a_title_that_w_and_b_would_refuse_is_cut(tmp_path, monkeypatch):
    monkeypatch.setattr(Diverging, "subject", "x" * 80)
    monkeypatch.setattr("support.small_task.LogisticRegression", Diverging)
    assert run_small_task(tmp_path / "run", wandb="offline") == 1
    ((_, title, _),) = log_of(tmp_path / "run").alerts
    assert len(title) < 64


def test_a_run_that_ends_well_sends_no_alert(tmp_path):
    assert run_small_task(tmp_path / "run", 5, wandb="offline") == 0
    assert log_of(tmp_path / "run").alerts == []


def test_a_server_that_takes_no_artifacts_loses_no_row_and_fails_no_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    with wandb_server(KEY) as server:  # it answers what artifacts need with nothing
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        assert run_small_task(tmp_path / "run", 5, wandb="online", wandb_artifacts=True) == 0
        (run,) = server.runs.values()
        assert [row["progress/steps"] for row in run.rows if "progress/steps" in row][:5] == [1, 2, 3, 4, 5]
        assert server.unknown
    _, line = capsys.readouterr().err.splitlines()
    assert re.fullmatch(
        rf"W&B gets no artifact model-\w+ \(.*\); the files stay in {re.escape(str(tmp_path / 'run'))}", line
    )


@pytest.mark.slow
def test_a_server_lost_before_the_model_is_uploaded_costs_a_bounded_wait(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    options = WandbOptions(artifacts=True, finish_timeout=2.0)
    said: list[str] = []
    (tmp_path / "checkpoint.pt").write_bytes(b"x" * 1000)
    with wandb_server(KEY) as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        sink = open_wandb(options, tmp_path / "run", {}, "id", say=said.append)
        sink.log({"progress/steps": 1}, 1)
        server.stop()
        started = time.monotonic()
        sink.log_model([tmp_path / "checkpoint.pt"], {})
        sink.finish({})
    assert time.monotonic() - started < PROMPT
    assert re.fullmatch(rf"W&B gets no artifact model-id \(.*\); the files stay in {re.escape(str(tmp_path))}", said[0])
    assert said[1].endswith(f"wandb sync --include-online {sink.folder}")


def test_a_file_that_cannot_be_copied_is_one_line(tmp_path):
    said: list[str] = []
    options = WandbOptions(mode="offline", artifacts=True)
    sink = open_wandb(options, tmp_path / "run", {}, "id", say=said.append)
    sink.log_model([tmp_path / "absent"], {"progress/steps": 1})
    sink.finish({})
    assert re.match(r"W&B gets no artifact model-id \(.*absent.*\); the files stay in ", said[1])


def test_ctrl_c_logs_the_model_as_far_as_it_is(tmp_path):
    support = Path(__file__).parents[1]
    code = (
        f"import sys; sys.path.append({str(support)!r})\n"
        "from pathlib import Path\n"
        "from support.small_task import run\n"
        "sys.exit(run(Path(sys.argv[1]), 10_000, seconds=0.01, wandb='offline', wandb_artifacts=True))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, tmp_path / "run"], env=child_environment(), stderr=subprocess.PIPE, text=True
    )
    metrics = tmp_path / "run" / "metrics.jsonl"
    wait_until(lambda: metrics.exists() and metrics.read_bytes().count(b"\n") > 5)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=HANG)
    assert process.returncode == 130, error
    log = log_of(tmp_path / "run")
    assert log.artifacts[0][2] == ["checkpoint.pt", "config.json", "summary.json"]
    assert log.alerts == []
    assert len(log.rows) >= len(read_records(metrics))
