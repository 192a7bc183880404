"""A wandb server of one process: takes runs as wandb's own client sends them, and remembers their lines."""

from __future__ import annotations

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

ENTITY = "lab"


class WandbServer:
    """Serves on a port of its own inside a ``with``.

    Args:
        refuses: answers 401 to everything, as to a key that is no longer valid.
    """

    def __init__(self, refuses: bool = False) -> None:
        self.refuses = refuses
        self.history: dict[str, list[dict[str, Any]]] = {}
        """Run id -> lines of metrics, as they stand on the server."""
        self.operations: list[str] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                self._answer(401 if server.refuses else 200, server.answer(self.path, content))

            def do_GET(self) -> None:
                self._answer(404, {})

            def do_PUT(self) -> None:
                self.do_POST()

            def _answer(self, status: int, value: Any) -> None:
                body = json.dumps(value).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *arguments: Any) -> None:
                """Says nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> WandbServer:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()

    def steps(self, run: str) -> list[int]:
        return [line["_step"] for line in self.history.get(run, [])]

    def answer(self, path: str, content: bytes) -> Any:
        if self.refuses:
            return {"errors": [{"message": "permission denied"}]}
        if path.endswith("/file_stream"):
            self._take_lines(path.split("/")[-2], json.loads(content))
            return {}
        if path != "/graphql":
            return {}
        request = json.loads(content)
        found = re.search(r"(?:query|mutation)\s+(\w+)", request["query"])
        operation = found[1] if found else ""
        self.operations.append(operation)
        return {"data": self._data(operation, request.get("variables") or {})}

    def _take_lines(self, run: str, sent: dict[str, Any]) -> None:
        part = (sent.get("files") or {}).get("wandb-history.jsonl")
        if part:
            lines = self.history.setdefault(run, [])
            lines[part["offset"] :] = [json.loads(line) for line in part["content"]]

    def _data(self, operation: str, variables: dict[str, Any]) -> Any:
        entity = {"id": "1", "name": ENTITY}
        run = str(variables.get("name"))
        lines = self.history.get(run)
        project = {"id": "2", "name": variables.get("project") or "test", "entity": entity}
        bucket = {
            "id": "3",
            "name": run,
            "displayName": run,
            "description": "",
            "config": "{}",
            "sweepName": None,
            "project": project,
            "historyLineCount": len(lines or []),
            "logLineCount": 0,
            "eventsLineCount": 0,
            "summaryMetrics": json.dumps((lines or [{}])[-1]),
            "historyTail": json.dumps(list(map(json.dumps, (lines or [])[-1:]))),
            "eventsTail": "[]",
            "tags": [],
            "notes": "",
            "wandbConfig": "{}",
        }
        if operation == "UpsertBucket":
            self.history.setdefault(run, [])
            return {"upsertBucket": {"bucket": bucket, "inserted": lines is None}}
        if operation == "RunResumeStatus":
            return {"model": {**project, "bucket": None if lines is None else bucket}}
        if operation == "Viewer":
            viewer = {"id": "4", "entity": ENTITY, "username": ENTITY, "email": "", "flags": "{}"}
            return {"viewer": {**viewer, "teams": {"edges": []}}}
        if operation == "ServerFeaturesQuery":
            return {"serverInfo": {"features": []}}
        if operation == "CreateRunFiles":
            names = variables.get("files", [])
            files = [{"name": name, "uploadUrl": f"{self.url}/upload/{name}"} for name in names]
            return {"createRunFiles": {"runID": "3", "uploadHeaders": [], "files": files}}
        return {}
