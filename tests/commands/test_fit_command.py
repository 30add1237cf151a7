"""The command `rlgns fit`; W&B is queried by its real client, from a simulated server on the loopback interface."""

import csv
import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from support.processes import HANG, child_environment
from support.synthetic_runs import config_of, damage, write_run, write_sweep

from rlgns.commands.cli import main
from rlgns.runs.records import read_records

KEY = "k" * 40


@pytest.fixture(scope="module")
def sweep(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sweep")
    write_sweep(folder, noise=0.05)
    return folder


def fit(*arguments: object) -> int:
    return main(["fit", *map(str, arguments)])


def test_the_critical_batch_size_of_a_sweep_is_printed(sweep, capsys):
    assert fit(sweep) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert "A2C on breakout: 75 runs" in printed.out
    points = re.findall(r"^  B_crit ([\d,]+) \[([\d,]+), ([\d,]+)\]", printed.out, re.MULTILINE)
    tuned = re.findall(
        r"^  at a parabola's best rate: B_crit ([\d,]+) \[([\d,]+), ([\d,]+)\]", printed.out, re.MULTILINE
    )
    for (_, low, high), truth in zip((*points, *tuned), (160, 640, 160, 640), strict=True):
        assert int(low.replace(",", "")) < truth < int(high.replace(",", ""))
    assert "256 × 10 = 2,560" in printed.out
    assert "At goal 20, B_crit is" in printed.out
    assert "noise scale, mean on the way to the goal, 3 runs of 640 transitions" in printed.out


def test_a_closed_pipe_ends_the_command_without_an_error(sweep):
    command = [sys.executable, "-m", "rlgns", "fit", str(sweep)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait() == 141


def test_a_goal_and_a_confidence_level_may_be_chosen(sweep, capsys):
    assert fit(sweep, "--goal", 20, "--level=0.5") == 0
    half = capsys.readouterr().out
    assert "Goal 5" not in half
    assert "50% intervals" in half
    assert fit(sweep, "--goal", 20) == 0
    whole = capsys.readouterr().out

    def width(text):
        low, high = re.search(r"B_crit [\d,]+ \[([\d,]+), ([\d,]+)\]", text).groups()
        return int(high.replace(",", "")) - int(low.replace(",", ""))

    assert width(half) < width(whole) / 2


def test_by_num_envs_there_is_a_table_for_every_num_steps(sweep, capsys):
    assert fit(sweep, "--by", "num_envs", "--goal", "20") == 0
    assert "Goal 20 at num_steps 10" in capsys.readouterr().out


def test_json_and_csv_hold_what_is_printed(sweep, tmp_path, capsys):
    assert fit(sweep, "--json", tmp_path / "fit.json", "--csv", tmp_path / "points.csv") == 0
    printed = capsys.readouterr().out
    found = json.loads((tmp_path / "fit.json").read_text())
    assert [fit["goal"] for fit in found["fits"]] == [5, 20]
    B_crit = found["fits"][1]["critical_batch_size"]
    assert B_crit["state"] == "interval"
    assert f"B_crit {B_crit['point']:,.0f} [{B_crit['low']:,.0f}, {B_crit['high']:,.0f}]" in printed
    assert all(line in printed for line in found["sentences"])
    with (tmp_path / "points.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 10
    assert rows[0].keys() == found["points"][0].keys()
    assert float(rows[7]["steps"]) == found["points"][7]["steps"]


def test_damaged_runs_are_named_and_do_not_stop_the_rest(tmp_path, capsys):
    damage(write_sweep(tmp_path, seeds=3, rates=[0.5, 1, 2], noise_scale=None)[0])
    assert fit(tmp_path) == 0
    printed = capsys.readouterr()
    assert "44 runs" in printed.out
    (line,) = printed.err.splitlines()
    assert line.startswith(f"note: {tmp_path}/4x10-lr0.5-seed0 holds a damaged run")


def test_censored_runs_are_marked(tmp_path, capsys):
    write_sweep(tmp_path, rates=[1], budget=1_300_000, noise_scale=None)
    assert fit(tmp_path, "--goal", 20) == 0
    printed = capsys.readouterr().out
    (line,) = [line for line in printed.splitlines() if "1024 × 10 = " in line]
    assert line.split()[6] == "0/3"
    assert line.split()[7].startswith(">")
    assert "3 of these 15 runs did not reach the goal" in printed


def test_a_single_run_has_a_table_and_a_reason(tmp_path, capsys):
    write_run(tmp_path / "run", num_envs=8, num_steps=10, learning_rate=1e-3, goals={5.0: 100})
    assert fit(tmp_path) == 0
    printed = capsys.readouterr().out
    assert "no fit: B_crit needs runs at 3 batch sizes or more, these are at 1; add batch sizes" in printed


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "which runs? name their directories, as in rlgns fit runs, or --wandb ENTITY/PROJECT/SWEEP"),
        (["{empty}"], "holds no runs"),
        (["{empty}/nowhere"], "nowhere is no directory"),
        (["{sweep}", "--goal", "7"], "no run had the goal 7; there are: 5, 20"),
        (["{sweep}", "--task", "chess"], "no run is of task 'chess'; there are: A2C on breakout"),
        (["{sweep}", "--by", "size"], "num_envs"),
        (["{sweep}", "--level", "95"], "level 95 is out of range; give --level from 0.01 to 0.9999"),
        (["{sweep}", "--goals", "20"], "did you mean --goal?"),
        (["--wandb", "project"], "'project' names no sweep or project of W&B; use ENTITY/PROJECT/SWEEP"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(sweep, tmp_path, capsys, arguments, words):
    assert fit(*(argument.format(sweep=sweep, empty=tmp_path) for argument in arguments)) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert line.startswith("error: ")
    assert words in line


def test_runs_of_two_tasks_are_refused_until_one_is_chosen(tmp_path, capsys):
    for task in ("one", "two"):
        write_sweep(tmp_path / task, rates=[1], noise_scale=None, task=task)
    assert fit(tmp_path) == 2
    assert "'one' and 'two'; choose with --task" in capsys.readouterr().err
    assert fit(tmp_path, "--task", "two") == 0
    assert "two: 15 runs" in capsys.readouterr().out


# W&B


class Server(ThreadingHTTPServer):
    """Answers the queries of wandb.Api for the runs of a project and for their histories."""

    daemon_threads = True

    def __init__(self, runs: dict[str, dict[str, Any]]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.runs = runs
        self.filters: list[dict[str, Any]] = []

    def answer(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        operation = re.search(r"query\s+(\w+)", query)[1]
        run = self.runs.get(variables.get("runName") or variables.get("run") or variables.get("name") or "")
        rows = [{"_step": i, **row} for i, row in enumerate(run["history"])] if run else []
        match operation:
            case "Viewer" | "GetDefaultEntity":
                return {"viewer": {"id": "user", "entity": "us", "username": "user", "email": "", "flags": "{}"}}
            case "Runs" if variables["project"] == "breakout":
                self.filters.append(json.loads(variables["filters"] or "{}"))
                edges = [{"cursor": name, "node": _node(name, run)} for name, run in self.runs.items()]
                page = {"endCursor": "", "hasNextPage": False}
                return {
                    "project": {
                        "internalId": "1",
                        "runCount": len(edges),
                        "readOnly": False,
                        "runs": {"edges": edges, "pageInfo": page},
                    }
                }
            case "RunHistoryKeys":
                return {"project": {"run": {"historyKeys": {"lastStep": len(rows) - 1, "keys": {}} if rows else None}}}
            case "RunParquetHistory" if rows:
                steps = [{"_step": row["_step"]} for row in rows]
                return {"project": {"run": {"parquetHistory": {"parquetUrls": [], "liveData": steps}}}}
            case "HistoryPage":
                asked = range(variables["minStep"], variables["maxStep"])
                return {"project": {"run": {"history": [json.dumps(row) for row in rows if row["_step"] in asked]}}}
        return {}


def _node(name: str, run: dict[str, Any]) -> dict[str, Any]:
    when = "2026-01-01T00:00:00"
    texts = {
        "config": json.dumps({key: {"value": value} for key, value in run["config"].items()}),
        "summaryMetrics": json.dumps(run["summary"]),
        "systemMetrics": "{}",
    }
    about = {"id": name, "projectId": "1", "name": name, "displayName": name, "state": run["state"], "tags": []}
    unset = dict.fromkeys(("sweepName", "group", "jobType", "commit", "description", "notes"))
    user = {"name": "user", "username": "user"}
    counts = {"historyLineCount": len(run["history"]), "historyKeys": None, "readOnly": False, "user": user}
    return {**about, **unset, **counts, **texts, "createdAt": when, "heartbeatAt": when}


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: object) -> None:
        pass

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        asked = json.loads(body)
        data = json.dumps({"data": self.server.answer(asked["query"], asked.get("variables") or {})}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def as_wandb_has_it(folder: Path) -> dict[str, Any]:
    config = config_of(folder)
    flat = {**config["options"], **{key: value for key, value in config.items() if key != "options"}, "_wandb": {}}
    rows = [{k: v for k, v in row.items() if v is not None} for row in read_records(folder / "metrics.jsonl")]
    summary = json.loads((folder / "summary.json").read_text())
    nested = {"_wandb": {"runtime": 3}}
    return {"state": "finished", "config": flat, "summary": {**summary, **nested}, "history": rows}


@pytest.fixture
def server(tmp_path) -> Iterator[Server]:
    folders = write_sweep(tmp_path / "sweep", seeds=2, rates=[1], shapes=[(4, 10), (64, 10), (1024, 10)])
    runs = {folder.name: as_wandb_has_it(folder) for folder in folders}
    young = {**next(iter(runs.values())), "state": "running", "summary": {}, "history": []}
    with Server({**runs, "young": young}) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def ask_wandb(server: Server, home: Path, *arguments: str, key: str | None = KEY) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own, because wandb starts one and reads its settings from the environment."""
    wandb = {"WANDB_BASE_URL": f"http://127.0.0.1:{server.server_port}", **({"WANDB_API_KEY": key} if key else {})}
    return subprocess.run(
        [sys.executable, "-c", "import sys; from rlgns.commands import cli; sys.exit(cli.main())", "fit", *arguments],
        env=child_environment(**wandb, HOME=home), capture_output=True, text=True, timeout=HANG, check=False,
    )  # fmt: skip


def test_the_runs_of_a_wandb_sweep_give_the_same_fit_as_their_directories(server, tmp_path, capsys):
    assert fit(tmp_path / "sweep") == 0
    here = capsys.readouterr().out
    home = tmp_path / "home"
    home.mkdir()
    there = ask_wandb(server, home, "--wandb", "us/breakout/abc123")
    assert there.returncode == 0, there.stderr
    assert there.stderr == ""
    young = "note: young is left out beside 4x10-lr1-seed0: it is the same run again\n\n"
    assert young in there.stdout
    assert there.stdout.replace(young, "") == here
    assert server.filters == [{"sweep": "abc123"}]
    assert [path for path in home.rglob("*") if path.is_file()] == []


def test_a_wandb_project_without_runs_of_this_package_is_an_error(server, tmp_path):
    server.runs = {"other": {"state": "finished", "config": {"lr": 1}, "summary": {}, "history": []}}
    done = ask_wandb(server, tmp_path, "--wandb", "us/breakout")
    assert done.returncode == 2
    note, error = done.stderr.splitlines()
    assert note == "note: other holds a damaged run (batch_size is missing); it is left out"
    assert "error: --wandb us/breakout has no runs that can be read" in error


@pytest.mark.parametrize(("key", "project", "words"), [(KEY, "chess", "chess"), (None, "breakout", "no API key")])
def test_a_failed_query_of_wandb_is_one_line(server, tmp_path, key, project, words):
    done = ask_wandb(server, tmp_path, "--wandb", f"us/{project}", key=key)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: W&B ")
    assert words in line
