"""Sinks, with the real W&B client; tests read what it logged from its own log or from a server on loopback."""

import errno
import gc
import os
import pty
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from support.processes import HANG, child_environment
from support.wandb_log import WandbLog, read_wandb_log
from support.wandb_server import wandb_server

import rlgns.runs.network
import rlgns.runs.wandb_sink
from rlgns.runs.records import columns, read_records
from rlgns.runs.sinks import JsonLines
from rlgns.runs.wandb_options import WandbOptions
from rlgns.runs.wandb_sink import WandbSink, open_wandb

KEY = "k" * 40
OFFLINE = WandbOptions(mode="offline")
PROMPT = 60.0
"""Seconds; also on a slow machine far fewer than the 90 and more for which the client of W&B waits by default."""


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch) -> Path:
    """An empty home directory without W&B or proxy settings: no test finds an API key or leaves files behind."""
    for name in list(os.environ):
        if name.startswith("WANDB_") or name.lower().endswith("_proxy") or name == "NETRC":
            monkeypatch.delenv(name)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    for name in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return home


@pytest.fixture(autouse=True)
def no_process_left() -> Iterator[None]:
    before = children()
    yield
    deadline = time.monotonic() + HANG
    while (left := children() - before) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left, f"processes left behind: {left}"


def children() -> set[str]:
    pids = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return {pid for pid in pids if ") Z " not in Path(f"/proc/{pid}/stat").read_text()}  # Z: a zombie process


@pytest.fixture
def run_dir(tmp_path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def png(tmp_path) -> Path:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    path = tmp_path / "figure.png"
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0\xff\0\0")) + chunk(b"IEND", b""))
    return path


def record(step: int) -> dict[str, object]:
    return {"progress/steps": step, "progress/transitions": 128 * step, "train/loss": 1 / (step + 1)}


def log_of(sink: WandbSink) -> WandbLog:
    return read_wandb_log(sink.folder / f"run-{sink.run_id}.wandb")


def refuse(line: str) -> None:
    raise AssertionError(f"said: {line}")


def test_importing_sinks_loads_no_wandb():
    code = "import sys, rlgns.runs.wandb_sink; assert not {'torch', 'wandb'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_disabled_writes_nothing_and_loads_no_wandb(run_dir):
    code = f"""
import sys
from pathlib import Path
from rlgns.runs.wandb_options import WandbOptions
from rlgns.runs.wandb_sink import open_wandb
assert open_wandb(WandbOptions(mode="disabled"), Path({str(run_dir)!r}), {{}}, "id") is None
assert "wandb" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    assert not run_dir.exists()


@pytest.mark.parametrize("mode", ["offline", "disabled"])
def test_wandb_mode_of_the_environment_tames_online(mode, run_dir, monkeypatch, said):
    monkeypatch.setenv("WANDB_MODE", mode)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    sink = open_wandb(WandbOptions(), run_dir, {}, "id", say=said.append)
    if mode == "disabled":
        assert sink is None
    else:
        assert "as asked" in said[0]
        sink.finish({})


def test_an_offline_run_holds_all_that_the_records_hold_and_more(run_dir, home, png, said, capfd):
    options = WandbOptions(
        mode="offline", project="p", group="batch 256", job_type="ppo", tags=("a", "b"), notes="why", name="nice"
    )
    config = {"num_envs": 8, "optimiser": {"learning_rate": 2.5e-4}, "env": "Pong"}
    file = JsonLines(run_dir / "metrics.jsonl")
    sink = open_wandb(options, run_dir, config, "run-1", say=said.append)
    for step in (1, 2, 3):
        for each in (file, sink):
            each.log_figure("figure/before", png, step)
            each.log(record(step) | {"train/kind": "ppo", "train/nan": float("nan"), "train/flag": True}, step)
    for each in (file, sink):
        each.log_figure("figure/after", png, 3)
    sink.log_artifact([run_dir / "metrics.jsonl"], "records-run-1", "records")
    for each in (file, sink):
        each.finish({"best/return": 21.0, "best/none": None}, exit_code=3)

    log = log_of(sink)
    without_figures = [{k: v for k, v in row.items() if not k.startswith("figure")} for row in log.records]
    in_file = [{k: v for k, v in row.items() if v is not None} for row in read_records(run_dir / "metrics.jsonl")]
    assert without_figures[:3] == in_file
    assert [row["_step"] for row in log.rows] == [1, 2, 3, 4]
    assert [row.get("figure/before", {}).get("_type") for row in log.rows] == ["image-file"] * 3 + [None]
    assert log.rows[3]["figure/after"]["_type"] == "image-file"
    assert log.rows[3]["progress/transitions"] == 3 * 128  # its value on the x axis
    assert (sink.folder / "files" / log.rows[3]["figure/after"]["path"]).read_bytes() == png.read_bytes()
    assert {key: log.config[key] for key in config} == config
    assert (log.run.run_id, log.run.project, log.run.display_name) == ("run-1", "p", "nice")
    assert (log.run.run_group, log.run.job_type, log.run.notes) == ("batch 256", "ppo", "why")
    assert list(log.run.tags) == ["a", "b"]
    assert log.metrics == {"progress/transitions": "", "*": "progress/transitions"}
    assert log.summary["best/return"] == 21.0
    assert "best/none" not in log.summary
    assert log.artifacts == [("records", "records-run-1", ["metrics.jsonl"])]
    assert log.exit_code == 3

    assert said == [f"W&B is offline (as asked); upload later with: wandb sync {sink.folder}"]
    assert capfd.readouterr() == ("", "")
    assert sink.folder.is_relative_to(run_dir)
    assert not list(home.rglob("*"))
    assert not list(Path.cwd().iterdir())
    assert not [name for name in os.environ if name.startswith("WANDB_")]


def test_a_step_that_does_not_grow_is_refused(run_dir, said):
    sink = open_wandb(OFFLINE, run_dir, {}, "id", say=said.append)
    sink.log(record(5), 5)
    with pytest.raises(ValueError, match="step 5 comes after step 5"):
        sink.log(record(5), 5)
    sink.finish({})


def test_a_run_directory_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file") as caught:
        open_wandb(OFFLINE, tmp_path / "file" / "run", {}, "id")
    assert caught.value.errno in {errno.ENOTDIR, errno.EEXIST}


def test_options_that_wandb_does_not_allow_are_an_error(run_dir):
    import wandb

    with pytest.raises(ValueError, match="Invalid project name"):
        open_wandb(WandbOptions(mode="offline", project="a/b"), run_dir, {}, "id")
    wandb.teardown()


@pytest.mark.parametrize(
    ("key", "reason"),
    [(None, "no API key; `wandb login` stores one"), ("short", "API key must have 40"), (KEY, "no connection to http")],
)
def test_without_key_or_network_the_run_is_offline_within_seconds_and_says_so_once(
    key, reason, run_dir, monkeypatch, said, capfd
):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{closed.getsockname()[1]}")
    if key:
        monkeypatch.setenv("WANDB_API_KEY", key)
    start = time.monotonic()
    sink = open_wandb(WandbOptions(), run_dir, {}, "id", say=said.append)
    assert time.monotonic() - start < PROMPT
    sink.log(record(1), 1)
    sink.finish({})
    assert log_of(sink).records == [record(1)]
    assert len(said) == 1
    assert reason in said[0]
    assert said[0].endswith(f"wandb sync {sink.folder}")
    assert capfd.readouterr() == ("", "")


def test_a_server_that_accepts_and_never_answers_means_offline(run_dir, monkeypatch, said):
    monkeypatch.setattr(rlgns.runs.wandb_sink, "INIT_TIMEOUT", 1.0)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        start = time.monotonic()
        sink = open_wandb(WandbOptions(), run_dir, {}, "id", say=said.append)
        assert time.monotonic() - start < PROMPT
    sink.log(record(1), 1)
    sink.finish({})
    assert log_of(sink).records == [record(1)]
    assert sink.run_id == "id"
    assert len(said) == 1


def test_a_refused_key_means_offline_under_the_same_id(run_dir, monkeypatch, said):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    with wandb_server("another key") as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        sink = open_wandb(WandbOptions(), run_dir, {}, "id", say=said.append)
        sink.log(record(1), 1)
        sink.finish({})
    assert (sink.run_id, server.runs) == ("id", {})
    assert log_of(sink).records == [record(1)]
    assert len(said) == 1


ANSWERS = {
    "a captive portal": (200, b"<html><body>Please log in</body></html>"),
    "garbage": (200, bytes(range(256))),
    "nothing": (200, b""),
    "null": (200, b"null"),
    "no data": (200, b'{"data": null}'),
    "a list": (200, b"[]"),
    "data of other types": (200, b'{"data": {"viewer": 3, "upsertBucket": "x"}}'),
    "an error": (200, b'{"errors": [{"message": "no"}]}'),
    "not found": (404, b"no"),
    "a circle of redirections": (302, b""),
}


@pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")  # of wandb, after a crash
@pytest.mark.parametrize("answer", ANSWERS)
def test_whatever_a_server_answers_the_run_is_offline_and_says_so_in_one_line(
    answer, run_dir, monkeypatch, said, capfd
):
    code, body = ANSWERS[answer]

    class Portal(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response(code)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Location", "/login")
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    monkeypatch.setenv("WANDB_API_KEY", KEY)
    with ThreadingHTTPServer(("127.0.0.1", 0), Portal) as portal:
        thread = threading.Thread(target=portal.serve_forever, args=(0.02,))
        thread.start()
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{portal.server_port}")
        sink = open_wandb(WandbOptions(), run_dir, {}, "id", say=said.append)
        sink.log(record(1), 1)
        sink.finish({})
        portal.shutdown()
        thread.join()
    gc.collect()
    assert log_of(sink).records == [record(1)]
    assert sink.run_id == "id"
    (line,) = said
    assert re.fullmatch(r"W&B is offline \(.+\); upload later with: wandb sync \S+", line)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["WANDB_MODE", "WANDB_BASE_URL", "WANDB_TAGS", "WANDB_RUN_ID", "WANDB_PROJECT"])
def test_a_setting_of_nothing_counts_as_not_set(name, run_dir, monkeypatch, said):
    monkeypatch.setenv(name, "")
    sink = open_wandb(WandbOptions(project="p"), run_dir, {}, "id", say=said.append)
    sink.finish({})
    assert sink.run_id == "id"
    assert "no API key" in said[0]
    assert os.environ[name] == ""


@pytest.mark.parametrize(("name", "value"), [("WANDB_MODE", "sometimes"), ("WANDB_BASE_URL", "nonsense")])
def test_a_setting_that_wandb_refuses_is_one_line(name, value, run_dir, monkeypatch):
    monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=f"refuses its setting .* '{value}' .*correct {name} or") as error:
        open_wandb(WandbOptions(), run_dir, {}, "id")
    assert len(str(error.value).splitlines()) == 1


def test_no_key_on_a_terminal_asks_nothing(run_dir, home):
    code = f"""
import sys
from pathlib import Path
from rlgns.runs.wandb_options import WandbOptions
from rlgns.runs.wandb_sink import open_wandb
assert sys.stdin.isatty() and sys.stderr.isatty()
open_wandb(WandbOptions(), Path({str(run_dir)!r}), {{}}, "id").finish({{}})
print("done")
"""
    terminal, end = pty.openpty()
    process = subprocess.Popen([sys.executable, "-c", code], stdin=end, stdout=end, stderr=end)
    os.close(end)
    shown = _read_terminal(terminal, seconds=HANG)
    os.close(terminal)
    process.kill()
    process.wait()
    first, second = shown.decode().split("\r\n")[:2]
    assert first.startswith("W&B is offline (no API key")
    assert "wandb sync" in first
    assert second == "done"
    assert not list(home.rglob("*"))


def _read_terminal(terminal: int, seconds: float) -> bytes:
    shown, deadline = b"", time.monotonic() + seconds
    while select.select([terminal], [], [], max(0.0, deadline - time.monotonic()))[0]:
        try:
            shown += os.read(terminal, 4096)
        except OSError:  # the other end is closed
            break
    return shown


def test_an_online_run_delivers_all_rows_and_its_exit_code(run_dir, home, monkeypatch, capfd):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    with wandb_server(KEY) as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        sink = open_wandb(WandbOptions(), run_dir, {"num_envs": 8}, "id", say=refuse)
        for step in range(200):
            sink.log(record(step), step)
        sink.finish({"best": 1.0}, exit_code=4)
    delivered = [{k: v for k, v in row.items() if not k.startswith("_")} for row in server.rows("id")]
    assert delivered == [record(step) for step in range(200)] == log_of(sink).records
    assert server.runs["id"].exit_code == 4
    assert capfd.readouterr() == ("", "")
    assert not list(home.rglob("*"))


def test_under_a_sweep_the_run_has_the_agents_id(run_dir, monkeypatch, said):
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep")
    monkeypatch.setenv("WANDB_RUN_ID", "of-the-agent")
    monkeypatch.setenv("WANDB_PROJECT", "sweeps")
    sink = open_wandb(OFFLINE, run_dir, {}, "ours", say=said.append)
    sink.finish({})
    log = log_of(sink)
    assert (sink.run_id, log.run.run_id) == ("of-the-agent", "of-the-agent")
    assert (log.run.project, log.run.sweep_id) == ("sweeps", "sweep")


@pytest.mark.slow
def test_a_server_lost_in_mid_run_costs_a_bounded_wait_and_no_row(run_dir, monkeypatch, said):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    with wandb_server(KEY) as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        sink = open_wandb(WandbOptions(finish_timeout=2.0), run_dir, {}, "id", say=said.append)
        sink.log(record(0), 0)
        server.stop()
        start = time.monotonic()
        for step in range(1, 1000):
            sink.log(record(step), step)
        assert time.monotonic() - start < PROMPT
        start = time.monotonic()
        sink.finish({})
        assert time.monotonic() - start < PROMPT
    assert log_of(sink).records == [record(step) for step in range(1000)]
    assert len(said) == 1
    assert said[0].endswith(f"wandb sync --include-online {sink.folder}")

    with wandb_server(KEY) as server:  # the command in the message uploads everything
        environment = child_environment(WANDB_BASE_URL=server.url, WANDB_API_KEY=KEY)
        command = [sys.executable, "-m", *sink.sync_command.split()]
        subprocess.run(command, env=environment, check=True, capture_output=True, timeout=HANG)
    assert len(server.rows("id")) == 1000


def test_when_wandbs_own_process_is_killed_the_run_goes_on_and_says_so_once(run_dir, png):
    code = f"""
import os, signal, time
from pathlib import Path
from rlgns.runs.wandb_options import WandbOptions
from rlgns.runs.wandb_sink import open_wandb
sink = open_wandb(WandbOptions(mode="offline"), Path({str(run_dir)!r}), {{}}, "id", say=print)
sink.log({{"progress/transitions": 1}}, 1)
def is_alive(pid):
    try:
        return ") Z " not in Path(f"/proc/{{pid}}/stat").read_text()
    except OSError:
        return False
for pid in Path(f"/proc/self/task/{{os.getpid()}}/children").read_text().split():
    os.kill(int(pid), signal.SIGKILL)
    while is_alive(pid):
        time.sleep(0.02)
for step in (2, 3):
    sink.log({{"progress/transitions": step}}, step)
png = Path({str(png)!r})
sink.log_figure("figure", png, 3)
sink.log_artifact([png], "figure", "figures")
sink.finish({{"best": 1.0}})
print("done")
"""
    process = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=HANG)
    offline, gone, done = process.stdout.splitlines()
    assert "as asked" in offline
    assert "own process has ended" in gone
    assert done == "done"


@pytest.mark.slow
def test_kill_9_leaves_the_records_complete_and_wandbs_log_up_to_its_last_flush(run_dir):
    """The first half of the rows is in W&B's log while the run goes on; any rows of the second half may be lost."""
    code = f"""
import os, signal, sys, time
from pathlib import Path
sys.path.append({str(Path(__file__).parents[1])!r})
from support.wandb_log import read_wandb_log
from rlgns.runs.sinks import JsonLines
from rlgns.runs.wandb_options import WandbOptions
from rlgns.runs.wandb_sink import open_wandb
run_dir = Path({str(run_dir)!r})
sinks = [JsonLines(run_dir / "metrics.jsonl"), open_wandb(WandbOptions(mode="offline"), run_dir, {{}}, "id")]
for step in range(60):
    for sink in sinks:
        sink.log({{"progress/steps": step, "progress/transitions": step}}, step)
    while step == 29 and not any(
        path.stat().st_size and len(read_wandb_log(path).rows) == 30
        for path in run_dir.glob("wandb/offline-run-*/run-id.wandb")
    ):
        time.sleep(0.05)
os.killpg(0, signal.SIGKILL)
"""
    command = [sys.executable, "-c", code]
    process = subprocess.run(command, check=False, capture_output=True, start_new_session=True, timeout=HANG)
    assert process.returncode == -signal.SIGKILL, process.stderr
    (path,) = run_dir.glob("wandb/offline-run-*/run-id.wandb")
    assert columns(read_records(run_dir / "metrics.jsonl"), "progress/steps")[0].tolist() == list(range(60))
    steps = [row["_step"] for row in read_wandb_log(path).rows]
    assert steps == list(range(len(steps)))
    assert len(steps) >= 30


def test_a_resumed_offline_run_is_two_fragments_of_one_run(run_dir, said):
    first = open_wandb(OFFLINE, run_dir, {}, "id", say=said.append)
    for step in (1, 2, 3):
        first.log(record(step), step)
    first.finish({}, exit_code=143)
    second = open_wandb(OFFLINE, run_dir, {}, "id", resume=True, say=said.append)
    for step in (4, 5):
        second.log(record(step), step)
    second.finish({})
    logs = [log_of(first), log_of(second)]
    assert first.folder != second.folder
    assert [log.run.run_id for log in logs] == ["id", "id"]
    assert [log.exit_code for log in logs] == [143, 0]
    assert [row["_step"] for log in logs for row in log.rows] == [1, 2, 3, 4, 5]


def test_a_resumed_online_run_continues_the_servers_rows(run_dir, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    with wandb_server(KEY) as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        for steps in ((1, 2, 3), (4, 5)):
            sink = open_wandb(WandbOptions(), run_dir, {}, "id", resume=steps[0] > 1, say=refuse)
            for step in steps:
                sink.log(record(step), step)
            sink.finish({})
    assert [row["_step"] for row in server.rows("id")] == [1, 2, 3, 4, 5]


def test_json_lines_marks_a_resumption(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for resumed_at, steps in ((None, (1, 2, 3)), (1, (2, 3))):
        sink = JsonLines(path, resumed_at)
        for step in steps:
            sink.log(record(step) | {"try": resumed_at}, step)
        sink.finish({})
    assert [(row["progress/steps"], row["try"]) for row in read_records(path)] == [(1, None), (2, 1), (3, 1)]


def test_a_server_behind_a_proxy_counts_as_reachable_when_the_proxy_is(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        server = f"http://127.0.0.1:{closed.getsockname()[1]}"
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        proxies = {"http": f"127.0.0.1:{proxy.getsockname()[1]}"}
        assert not rlgns.runs.network.is_reachable(server, {})
        assert rlgns.runs.network.is_reachable(server, proxies)
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        assert not rlgns.runs.network.is_reachable(server, proxies)
