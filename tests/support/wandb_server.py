"""A stand-in for the W&B server on loopback: enough GraphQL, file stream and storage for online runs and grid sweeps.

    with wandb_server(key) as server:
        os.environ["WANDB_BASE_URL"] = server.url
        ...
        server.rows("run id")

It refuses every other key. After `stop` connections are refused, as after the loss of a network.
"""

import base64
import itertools
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import yaml


@dataclass
class Run:
    rows: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    config: str | None = None
    sweep: str | None = None
    exit_code: int | None = None


@dataclass
class Sweep:
    """A grid sweep in which every point is handed out once, whatever happens to its run."""

    text: str
    todo: list[dict[str, Any]]
    handed: dict[str, dict[str, Any]] = field(default_factory=dict)  # run id → parameters

    @classmethod
    def of(cls, text: str) -> "Sweep":
        parameters = yaml.safe_load(text)["parameters"]
        values = [one["values"] if "values" in one else [one["value"]] for one in parameters.values()]
        return cls(text, [dict(zip(parameters, point, strict=True)) for point in itertools.product(*values)])


class WandbServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, key: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.authorization = "Basic " + base64.b64encode(f"api:{key}".encode()).decode()
        self.runs: dict[str, Run] = {}
        self.sweeps: dict[str, Sweep] = {}
        self.agents: dict[str, str] = {}  # agent → sweep
        self.unknown: list[str] = []  # GraphQL operations that were answered with an empty result
        self.lock = threading.Lock()
        self._thread = threading.Thread(target=self.serve_forever, args=(0.02,))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def rows(self, run_id: str) -> list[dict[str, Any]]:
        return self.runs[run_id].rows

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        if self._thread.is_alive():
            self.shutdown()
            self._thread.join()
            self.server_close()


@contextmanager
def wandb_server(key: str) -> Iterator[WandbServer]:
    server = WandbServer(key)
    server.start()
    try:
        yield server
    finally:
        server.stop()


class _Handler(BaseHTTPRequestHandler):  # HTTP/1.0: no connection outlives its answer, so none outlives `stop`
    server: WandbServer

    def log_message(self, *_: object) -> None:
        pass

    def do_POST(self) -> None:
        body = self._body()
        if self.headers.get("Authorization") != self.server.authorization:
            self._answer({"errors": [{"message": "invalid API key"}]}, 401)
        elif self.path.endswith("/graphql"):
            self._answer({"data": self._graphql(body["query"], body.get("variables") or {})})
        elif self.path.endswith("/file_stream"):
            self._file_stream(self.path.split("/")[-2], body)
            self._answer({"exitcode": None, "limits": {}})
        else:
            self._answer({}, 404)

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self._answer({})

    def do_GET(self) -> None:
        self._answer({}, 404)

    def _body(self) -> dict[str, Any]:
        data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return json.loads(data) if data.startswith(b"{") else {}

    def _answer(self, content: dict[str, Any], status: int = 200) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _file_stream(self, run_id: str, body: dict[str, Any]) -> None:
        run = self.server.runs.setdefault(run_id, Run())
        if history := (body.get("files") or {}).get("wandb-history.jsonl"):
            run.rows[history["offset"] :] = [json.loads(line) for line in history["content"]]
        if summary := (body.get("files") or {}).get("wandb-summary.json"):
            run.summary = json.loads(summary["content"][-1])
        if body.get("complete"):
            run.exit_code = body.get("exitcode")

    def _graphql(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        match = re.search(r"(?:query|mutation)\s+(\w+)", query)
        operation = match[1] if match else "?"
        project = {"id": "project", "name": variables.get("project"), "entity": {"id": "entity", "name": "someone"}}
        for part in (self._of_runs, self._of_sweeps, self._of_server):
            if (answer := part(operation, query, variables, project)) is not None:
                return answer
        self.server.unknown.append(operation)
        return {}

    def _of_runs(
        self, operation: str, query: str, variables: dict[str, Any], project: dict[str, Any]
    ) -> dict[str, Any] | None:
        if "upsertBucket" in query:
            name = variables["name"]
            inserted = name not in self.server.runs
            run = self.server.runs.setdefault(name, Run())
            run.config = variables.get("config") or run.config
            run.sweep = variables.get("sweep") or run.sweep
            bucket = {"id": name, "name": name, "displayName": name, "description": "", "config": run.config}
            bucket |= {"sweepName": run.sweep or "", "project": project, "historyLineCount": len(run.rows)}
            return {"upsertBucket": {"bucket": bucket, "inserted": inserted}}
        if operation == "RunResumeStatus":
            return {"model": project | {"bucket": _resumable(variables["name"], self.server.runs)}}
        if operation == "RunStoppedStatus":
            return {"project": {"run": {"stopped": False}}}
        if "createRunFiles" in query:
            files = [{"name": name, "uploadUrl": f"{self.server.url}/storage/{name}"} for name in variables["files"]]
            return {"createRunFiles": {"runID": "run", "uploadHeaders": [], "files": files}}
        return None

    def _of_server(
        self, operation: str, query: str, variables: dict[str, Any], project: dict[str, Any]
    ) -> dict[str, Any] | None:
        if operation == "Viewer":
            return {"viewer": {"id": "user", "entity": "someone", "username": "someone", "teams": {"edges": []}}}
        if "serverInfo" in query:
            versions = {"cliVersionInfo": {"max_cli_version": "0.99.0"}, "latestLocalVersionInfo": None}
            return {"serverInfo": versions | {"features": [], "featureFlags": []}, "viewer": {"id": "user"}}
        return None

    def _of_sweeps(
        self, operation: str, query: str, variables: dict[str, Any], project: dict[str, Any]
    ) -> dict[str, Any] | None:
        server = self.server
        if "upsertSweep" in query:
            name = f"sweep{len(server.sweeps)}"
            server.sweeps[name] = Sweep.of(variables["config"])
            sweep = {"id": name, "name": name, "config": variables["config"], "project": project}
            return {"upsertSweep": {"sweep": sweep, "configValidationWarnings": []}}
        if "createAgent" in query:
            name = f"agent{len(server.agents)}"
            server.agents[name] = variables["sweep"]
            return {"createAgent": {"agent": {"id": name}}}
        if "agentHeartbeat" in query:
            with server.lock:
                commands = self._commands(variables["id"], json.loads(variables["runState"]))
            return {"agentHeartbeat": {"agent": {"id": variables["id"]}, "commands": json.dumps(commands)}}
        if operation == "SweepWithRuns":
            name = variables["sweep"]
            sweep = {"id": name, "name": name, "config": server.sweeps[name].text, "runs": {"edges": []}}
            return {"project": {"sweep": sweep}}
        return None

    def _commands(self, agent: str, running: dict[str, bool]) -> list[dict[str, Any]]:
        name = self.server.agents[agent]
        sweep = self.server.sweeps[name]
        if running:
            return []
        if not sweep.todo:
            return [{"type": "exit"}]
        run_id = f"{name}-run{len(sweep.handed)}"
        sweep.handed[run_id] = sweep.todo.pop(0)
        args = {key: {"value": value} for key, value in sweep.handed[run_id].items()}
        return [{"type": "run", "run_id": run_id, "args": args, "program": yaml.safe_load(sweep.text).get("program")}]


def _resumable(run_id: str, runs: dict[str, Run]) -> dict[str, Any] | None:
    if run_id not in runs:
        return None
    run = runs[run_id]
    tail = json.dumps([json.dumps(run.rows[-1])] if run.rows else [])
    counts = {"logLineCount": 0, "historyLineCount": len(run.rows), "eventsLineCount": 0}
    texts = {"historyTail": tail, "eventsTail": "[]", "summaryMetrics": "{}", "config": run.config or "{}"}
    return {"id": run_id, "name": run_id, "displayName": run_id, "tags": [], "wandbConfig": "{}"} | counts | texts
