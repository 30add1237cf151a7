"""A stand-in for the Hugging Face hub on loopback: what huggingface_hub needs to make a repository and to commit files.

    with hub_server("token") as server:
        huggingface_hub.constants.ENDPOINT = server.url  # HF_ENDPOINT, before huggingface_hub is imported
        ...
        server.repositories["user/repo"]["README.md"]

Models (*.zip) and videos go through Git LFS, everything else into the commit itself, as on the hub.
"""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

LARGE = (".zip", ".mp4")


class HubServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, token: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.token = token
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.private: set[str] = set()
        self.commits: list[tuple[str, str]] = []  # repository, message
        self.objects: dict[str, bytes] = {}  # LFS objects by SHA-256
        self.refuses = False  # whether commits are refused, as those of somebody without the right to write

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def hub_server(token: str) -> Iterator[HubServer]:
    server = HubServer(token)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: HubServer

    def log_message(self, *_: object) -> None:
        pass

    def do_POST(self) -> None:  # noqa: PLR0911
        body = self._body()
        path = urlsplit(self.path).path
        if path == "/api/validate-yaml":
            assert json.loads(body)["content"].startswith("---\n")
            return self._answer({"errors": [], "warnings": []})
        if self.headers.get("Authorization") != f"Bearer {self.server.token}":
            return self._answer({"error": "Invalid user token."}, 401)
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if "/preupload/" in path:
            files = [
                {"path": file["path"], "shouldIgnore": False, "uploadMode": _mode(file["path"])}
                for file in json.loads(body)["files"]
            ]
            return self._answer({"files": files})
        if path.endswith(".git/info/lfs/objects/batch"):
            return self._answer(
                {"transfer": "basic", "objects": [self._upload(o) for o in json.loads(body)["objects"]]}
            )
        if "/commit/" in path:
            return self._commit("/".join(path.split("/")[3:5]), body)
        return self._answer({"error": f"no such place: {path}"}, 404)

    def do_PUT(self) -> None:
        data = self._body()
        name = self.path.rpartition("/")[2]
        assert hashlib.sha256(data).hexdigest() == name
        self.server.objects[name] = data
        self._answer({})

    def _create(self, request: dict[str, Any]) -> None:
        repository = f"{request['organization']}/{request['name']}"
        is_new = repository not in self.server.repositories
        if is_new:
            self.server.repositories[repository] = {}
            if request.get("visibility") == "private" or request.get("private"):
                self.server.private.add(repository)
        self._answer({"url": f"{self.server.url}/{repository}"}, 200 if is_new else 409)

    def _upload(self, file: dict[str, Any]) -> dict[str, Any]:
        href = f"{self.server.url}/objects/{file['oid']}"
        return {**file, "actions": {"upload": {"href": href, "header": {}}}}

    def _commit(self, repository: str, body: bytes) -> None:
        if self.server.refuses:
            return self._answer({"error": "You don't have the rights to push to this repository."}, 403)
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "header":
                self.server.commits.append((repository, value["summary"]))
            elif entry["key"] == "file":
                self.server.repositories[repository][value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                self.server.repositories[repository][value["path"]] = self.server.objects[value["oid"]]
        oid = f"{len(self.server.commits):040x}"
        return self._answer({"commitUrl": f"{self.server.url}/{repository}/commit/{oid}", "commitOid": oid})

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            data = b""
            while size := int(self.rfile.readline(), 16):
                data += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return data
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _answer(self, content: dict[str, Any], status: int = 200) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def _mode(path: str) -> str:
    return "lfs" if path.endswith(LARGE) else "regular"
