"""Malformed sweep files and damaged sweep directories: each costs one line, and no run is lost."""

import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlgns.commands.cli import main
from rlgns.sweeps.jobs import Job
from rlgns.sweeps.journal import Event, Journal
from rlgns.sweeps.pruning import Follower
from rlgns.sweeps.spec import RunSpec, Sweep

GRID = "method: grid\nprogram: train.py\n"
RANDOM = "method: random\nprogram: train.py\n"
ONE = "parameters: {a: {value: 1}}\n"


def refusal(folder: Path, text: str, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line with which `rlgns sweep` refuses a file, with exit code 2 and without doing anything."""
    path = folder / "sweep.yaml"
    path.write_text(text)
    assert main(["sweep", str(path), f"--out={folder / 'out'}"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    assert len(printed.err) < 600
    assert not (folder / "out").exists()
    return printed.err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GRID + "parameters: " + "[" * 50_000, "is nested more than 32 deep"),
        (GRID + "parameters:\n" + "".join(f"  p{i}: {{values: [1, 2, 3]}}\n" for i in range(20)), "3,486,784,401 runs"),
        (GRID + f"parameters: {{a: {{values: {list(range(100_001))}}}}}", "holds more than 100,000 values"),
        (GRID + "parameters:\n", "there are no parameters; write parameters: {NAME: {values: [..]}"),
        (GRID + "parameters: []\n", "there are no parameters"),
        (GRID + "parameters: {}\n", "there are no parameters"),
        (GRID + "parameters: [a, b]\n", "['a', 'b'] are no parameters"),
        (GRID + "parameters: text\n", "'text' are no parameters"),
        (GRID + "parameters: {1: {value: 2}}", "has '1' in line 3 where a name is expected"),
        (GRID + "parameters: {on: {value: 2}}", "has 'on' in line 3 where a name is expected"),
        (GRID + "parameters: {a: {value: 1}, a: {value: 2}}", "gives 'a' twice"),
        (GRID + "parameters: {a-b: {value: 1}, a_b: {value: 2}}", "parameters a-b and a_b are the same flag"),
        (GRID + ONE + "method: random", "gives 'method' twice"),
        (GRID + ONE + "run_cap: true", "run_cap True is not a positive number"),
        (GRID + ONE + "run_cap: 2.5", "run_cap 2.5 is not"),
        (GRID + ONE + "run_cap: -1", "run_cap -1 is not"),
        (GRID + ONE + "run_cap: [1]", "run_cap [1] is not"),
        (GRID + "parameters: {out: {value: x}}", "parameter out is given to every run by rlgns sweep"),
        (GRID + "parameters: {'a b': {value: x}}", "parameter 'a b' is no name of a flag"),
        (GRID + "parameters: {a: }", "parameter a: None is no description"),
        (GRID + "parameters: {a: [1, 2]}", "parameter a: [1, 2] is no description; write it as NAME: {values"),
        (GRID + "parameters: {a: {values: 3}}", "parameter a: values: 3 is no list"),
        (GRID + "parameters: {a: {values: abc}}", "parameter a: values: 'abc' is no list"),
        (GRID + "parameters: {a: {values: {b: 1}}}", "is no list"),
        (GRID + "parameters: {a: {valeus: [1]}}", "parameter a: "),
        (GRID + "parameters: {a: {value: 1, values: [1]}}", "parameter a: {'value': 1, 'values': [1]} is no form"),
        (GRID + "parameters: {a: {values: [1, .nan]}}", "parameter a: the value nan is not finite"),
        (GRID + "parameters: {a: {values: [[1, 1e999]]}}", "parameter a: the value inf is not finite"),
        (GRID + 'parameters: {a: {value: "\\0"}}', "parameter a: the value '\\x00' holds a zero byte"),
        (RANDOM + "parameters: {a: {min: '1e-3', max: 1.0}}", "parameter a: min: '1e-3' is no number; write it as in"),
        (RANDOM + "parameters: {a: {min: true, max: 2}}", "parameter a: min: True is no number"),
        (RANDOM + "parameters: {a: {min: 0.0, max: .inf}}", "parameter a: max: inf is not a finite number"),
        (RANDOM + "parameters: {a: {min: 0, max: 1000000000000000000000000}}", "is too large for a whole number"),
        (RANDOM + "parameters: {a: {min: 2.0, max: 1.0}}", "parameter a: min 2.0 is not less than max 1.0"),
        (RANDOM + "parameters: {a: {min: 0.0}}", "parameter a: {'min': 0.0} is no form that W&B knows"),
        (RANDOM + "parameters: {a: {min: 0, max: 1.0, distribution: log_uniform_values}}", "is no form that W&B knows"),
        (RANDOM + "parameters: {a: {distribution: normal, mu: 0, sigma: -1}}", "parameter a: "),
        (
            RANDOM + "parameters: {a: {values: [1, 2], probabilities: [1]}}",
            "parameter a: values [1, 2] and probabilities",
        ),
        (RANDOM + "parameters: {a: {values: [1, 2], probabilities: [2, -1]}}", "parameter a: "),
        ("method: bayes\nprogram: x\n" + ONE, "a Bayesian search needs metric:"),
        ("method: bayes\nprogram: x\nmetric: {name: b}\n" + ONE, "a Bayesian search needs a parameter that varies"),
        (
            "method: bayes\nprogram: x\nmetric: {name: b}\nparameters: {a: {values: [1, 2], probabilities: [0, 1]}}",
            "parameter a: W&B's Bayesian search takes no probabilities",
        ),
        (RANDOM + "parameters: {a: {distribution: log_normal, mu: 100000, sigma: 1}}", "a: its distribution gives inf"),
        ("method: [grid]\n" + ONE, "['grid'] is not one of"),
        ("method: {}\n" + ONE, "is not one of"),
        ("method: custom\n" + ONE, "method custom needs W&B's server"),
        (ONE, "'method' is a required property"),
        (GRID + ONE + "metric: loss", "metric: 'loss': "),
        (GRID + ONE + "metric: {name: 3}", "metric: {'name': 3}: 3 is not of type 'string'"),
        (GRID + ONE + "early_terminate: true", "early_terminate: True: "),
        (GRID + ONE + "early_terminate: {type: hyperband}", "write {type: hyperband, min_iter: 3}"),
        (GRID + ONE + "early_terminate: {type: hyperband, min_iter: 3, eta: 1}", "eta above 1"),
        (GRID + ONE + "early_terminate: {type: hyperband, min_iter: 3}", "early_terminate needs metric:"),
        ("method: grid\n" + ONE + "command: python train.py", "command: 'python train.py' is no list of words"),
        ("method: grid\n" + ONE + "command: []", "command: [] is no list of words"),
        ("method: grid\n" + ONE + "command: [[a]]", "command: ['a'] is no word"),
        ("method: grid\n" + ONE + "command: [null]", "command: None is no word"),
        ("method: grid\n" + ONE + "program: 3", "program: 3 is no text"),
        (GRID + ONE + "name: {a: 1}", "name: {'a': 1} is no text"),
        ("method: grid\n" + ONE, "${program} in its command cannot be filled in"),
        (GRID + ONE + "comand: [python]", "did you mean command?"),
        ("text", "holds a str; expected options by name"),
        ("", "there are no parameters"),
    ],
)
def test_a_malformed_file_is_refused_in_one_line(text, message, tmp_path, capsys):
    assert message in refusal(tmp_path, text, capsys)


@pytest.mark.parametrize("command", ['["${args}"]', '["${env}", "${args}"]', '["${envvar:NOT_SET}", "${args}"]'])
def test_a_command_without_a_program_is_refused(command, tmp_path, capsys):
    assert "program" in refusal(tmp_path, f"method: grid\ncommand: {command}\n" + ONE, capsys)


def test_a_sweep_file_may_be_a_pipe(tmp_path, capsys):
    """In `rlgns sweep <(make-sweep)` the file can be read only once."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    text = f"method: grid\ncommand: ['true', '${{args}}']\n{ONE}"
    writer = threading.Thread(target=pipe.write_text, args=(text,))
    writer.start()
    assert main(["sweep", str(pipe), f"--out={tmp_path / 'out'}"]) == 0
    writer.join()
    assert "1 finished" in capsys.readouterr().out
    assert (tmp_path / "out/sweep.yaml").read_text() == text


def test_any_number_of_workers_and_failures_is_accepted(tmp_path):
    path = tmp_path / "sweep.yaml"
    path.write_text(f"method: grid\ncommand: ['true', '${{args}}']\n{ONE}")
    assert main(["sweep", str(path), f"--out={tmp_path / 'out'}", "--workers=1000000000000"]) == 0
    assert Job(RunSpec("run", {}), tmp_path, failures=5000).pause == 60


def test_a_number_in_exponents_needs_no_point(tmp_path):
    path = tmp_path / "sweep.yaml"
    path.write_text(RANDOM + "parameters: {a: {min: 1e-4, max: 1e-3, distribution: log_uniform_values}}")
    assert 1e-4 <= Sweep(path).next([]).parameters["a"] <= 1e-3


# --- what lies in the directory

ODD = [
    "[]", "3", "null", '"text"', "{", '{"exit_code": 0', "[" * 100_000, '{"a":' * 100_000, "\x00" * 20, "1e999",
    '{"exit_code": "0"}', '{"exit_code": [0]}', '{"exit_code": false}', '{"exit_code": null}', "{}", "\ud800",
]  # fmt: skip


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", errors="surrogatepass")


@pytest.mark.parametrize("text", ODD, ids=range(len(ODD)))
def test_a_malformed_summary_counts_as_none(text, tmp_path):
    write(tmp_path / "run/summary.json", text)
    job = Job(RunSpec("run", {}), tmp_path, metric="loss")
    assert not job.is_finished
    assert job.metric_at_end() is None


RECORDS = [
    *ODD, '{"event": "resume"}', '{"event": "resume", "progress/steps": "7"}', '{"progress/examples": "many"}',
    '{"progress/examples": Infinity, "time/examples_per_second": NaN}', '{"progress/examples": 1e999}',
    '{"goal/x/steps_to_goal": 3}', '{"goal/1/steps_to_goal": 3}', '{"goal/1/steps_to_goal": [3]}',
    '{"progress/examples": %s}' % ("9" * 400), '{"loss": true, "progress/steps": {}}',
]  # fmt: skip


def test_malformed_records_are_skipped(tmp_path):
    run = tmp_path / "run"
    good = {"progress/steps": 2, "progress/examples": 80, "time/examples_per_second": 4.0, "loss": 0.5}
    write(run / "metrics.jsonl", "\n".join([*RECORDS, json.dumps(good), *ODD, ""]))
    write(run / "config.json", '{"max_examples": [1]}')
    follower = Follower(run, "loss")
    follower.update()
    assert follower.course == [0.5]
    assert follower.goals == {}
    assert (follower.measure, follower.seconds_left) == (None, None)
    write(run / "metrics.jsonl", "\n".join([*RECORDS, json.dumps(good), ""]))
    follower = Follower(run, "loss")
    follower.update()
    assert (follower.examples, follower.speed) == (80, 4.0)


EVENTS = [
    *ODD, '{"event": "started"}', '{"run": 3, "event": "started"}', '{"run": "a", "event": "nonsense"}',
    '{"run": "a", "event": ["started"]}', '{"run": "a", "event": "proposed"}', '{"run": "a", "event": {}}',
    '{"run": "a", "event": "proposed", "parameters": "["}', '{"run": "a", "event": "proposed", "parameters": "[1]"}',
    '{"run": "a", "event": "proposed", "parameters": "%s"}' % ("[" * 100_000),
]  # fmt: skip


def test_lines_of_a_journal_that_are_no_events_are_skipped_and_reported(tmp_path):
    good = Event("a", "started", parameters={"x": 1.5})
    write(tmp_path / "sweep.jsonl", "\n".join([*EVENTS, json.dumps(good.record()), ""]))
    write(
        tmp_path / "sweep-1-of-2.jsonl", json.dumps(Event("b", "failed", exit_code=7, reason="words").record()) + "\n"
    )
    lines: list[str] = []
    assert Journal(tmp_path, (1, 1), lines.append).news() == [Event("b", "failed", exit_code=7, reason="words"), good]
    assert lines == [f"{tmp_path / 'sweep.jsonl'}: {len(EVENTS)} lines are no events of a run and are skipped"]


def test_each_event_of_a_journal_is_read_once(tmp_path):
    mine, other = (Journal(tmp_path, shard, pytest.fail) for shard in ((1, 2), (2, 2)))
    mine.open()
    other.open()
    other.note(Event("a", "started"))
    mine.note(Event("b", "started"))
    assert mine.news() == [Event("a", "started")]
    assert mine.news() == []
    other.note(Event("a", "finished"))
    assert mine.news() == [Event("a", "finished")]
    mine.close()
    other.close()


def test_a_full_disk_costs_the_journal_and_no_run(tmp_path):
    lines: list[str] = []
    (tmp_path / "sweep.jsonl").symlink_to("/dev/full")
    journal = Journal(tmp_path, (1, 1), lines.append)
    journal.open()
    journal.note(Event("a", "started"))
    journal.note(Event("a", "finished"))
    assert lines == [f"{tmp_path / 'sweep.jsonl'} cannot be written to (No space left on device); runs go on"]


def test_a_sweep_continues_despite_runs_that_are_damaged_in_every_way(tmp_path, capsys, monkeypatch):
    """Damaged are finished runs that others would be compared with, journals, and the copy of the sweep file."""
    monkeypatch.setattr("rlgns.sweeps.launcher.LOOK_SECONDS", 0.0)
    rates = [i / 100 for i in range(1, len(RECORDS) + 1)]
    parameters: dict[str, Any] = {"learning_rate": {"values": [*rates, 7.5]}, "gamma": {"value": 1}}
    command = ["bash", "-c", 'for last; do :; done; sleep 0.5; echo "{\\"exit_code\\": 0}" > new', "${args}"]
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump({"method": "grid", "parameters": parameters, "command": command}))
    for rate, records in zip(rates, RECORDS, strict=True):
        run = tmp_path / f"out/learning_rate={rate}"
        write(run / "config.json", records)
        write(run / "metrics.jsonl", records + "\n")
        write(run / "summary.json", '{"exit_code": 0, "time/seconds": [1]}')
    write(tmp_path / "out/sweep.jsonl", "\n".join([*EVENTS, ""]))
    write(tmp_path / "out/sweep.yaml", "method: [")
    monkeypatch.chdir(tmp_path)
    assert main(["sweep", str(path), f"--out={tmp_path / 'out'}", "--dry-run"]) == 0
    assert main(["sweep", str(path), f"--out={tmp_path / 'out'}"]) == 0
    printed = capsys.readouterr()
    assert f"{len(RECORDS) + 1} finished" in printed.out
    assert "lines are no events of a run and are skipped" in printed.err
    assert "no run is compared with learning_rate=0.01" in printed.err


@pytest.mark.parametrize(
    ("command", "names"),
    [
        (["rlgns", "train", "atari", "${args}"], {"num_envs", "num_steps"}),
        (["${interpreter}", "scripts/train_atari.py", "${args}"], {"num_envs", "num_steps"}),
        (["python", "their_trainer.py", "${args}"], {"n_envs", "n_steps"}),
    ],
)
def test_a_sweep_of_this_package_may_have_stable_baselines3_s_names(tmp_path, command, names):
    parameters = {"n_envs": {"values": [4, 8]}, "n_steps": {"value": 5}}
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump({"method": "grid", "command": command, "parameters": parameters}))
    runs = Sweep(path).grid()
    assert all(set(run.parameters) == names for run in runs)
    assert sorted(run.batch_size or 0 for run in runs) == ([20, 40] if "num_envs" in names else [0, 0])
