"""Servers on loopback for tests of remote corpora: an HTTP server that misbehaves on purpose, nginx, and S3."""

from __future__ import annotations

import random
import re
import shutil
import socket
import struct
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

FAULTS = ("error500", "error503", "reset", "truncate", "cut_header", "stall", "wrong_byte", "no_ranges")


@dataclass
class HostileServer:
    """A folder over HTTP. Which requests go wrong is drawn from a seed; what was asked is kept."""

    folder: Path
    port: int = 0
    shares: dict[str, float] = field(default_factory=dict)
    """Share of the requests that meet each fault."""
    always: dict[str, list[str]] = field(default_factory=dict)
    """Faults of the next requests for a name, one a request, before any drawn ones."""
    down_after: int | None = None
    """Requests for tars after which it only answers 503."""
    stall_seconds: float = 5.0
    seed: int = 0
    requests: list[tuple[str, str | None]] = field(default_factory=list)
    """Name and range header of every request."""
    faults: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def count(self, ending: str) -> int:
        """Requests for names that end so."""
        return sum(name.endswith(ending) for name, _ in self.requests)

    def start(self) -> HostileServer:
        server = self

        class Handler(_Handler):
            hostile = server

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            allow_reuse_address = True
            request_queue_size = 64

            def handle_error(self, request: Any, client_address: Any) -> None:
                pass  # clients that give up are part of the tests

        self._server = Server(("127.0.0.1", self.port), Handler)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def next_fault(self, name: str, range_header: str | None) -> str:
        with self._lock:
            self.requests.append((name, range_header))
            if self.down_after is not None and self.count(".tar") > self.down_after:
                fault = "error503"
            elif self.always.get(name):
                fault = self.always[name].pop(0)
            else:
                draw, fault = self._random.random(), ""
                for one, share in self.shares.items():
                    if not fault and draw < share:
                        fault = one
                    draw -= share
            if fault:
                self.faults[fault] += 1
            return fault

    def spoilt(self, content: bytes) -> bytes:
        with self._lock:
            place, change = self._random.randrange(len(content)), self._random.randrange(1, 256)
        return content[:place] + bytes([content[place] ^ change]) + content[place + 1 :]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    hostile: HostileServer

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        name = self.path.lstrip("/")
        asked = self.headers.get("Range")
        fault = self.hostile.next_fault(name, asked)
        path = self.hostile.folder / name
        if fault == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            self.connection.close()
            return
        if fault.startswith("error"):
            self._answer(int(fault[5:]), b"no")
            return
        if not path.is_file():
            self._answer(404, b"not found")
            return
        content = path.read_bytes()
        begin, end = _range_of(asked, len(content)) if asked and fault != "no_ranges" else (0, len(content))
        if begin >= len(content):
            self._answer(416, b"")
            return
        part, headers = content[begin:end], {}
        if asked and fault != "no_ranges":
            headers = {"Content-Range": f"bytes {begin}-{end - 1}/{len(content)}"}
        if fault == "wrong_byte":
            part = self.hostile.spoilt(part)
        self._answer(206 if headers else 200, part, headers, fault)

    def _answer(self, status: int, content: bytes, headers: Mapping[str, str] = {}, fault: str = "") -> None:
        half = content[: len(content) // 2]
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if fault == "cut_header":  # an answer that ends early and does not say so
            self.send_header("Connection", "close")
        else:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if fault == "trickle":
            for place in range(len(content)):
                self.wfile.write(content[place : place + 1])
                time.sleep(0.02)
        elif fault in ("truncate", "stall", "cut_header"):
            self.wfile.write(half)
            self.wfile.flush()
            if fault == "stall":
                time.sleep(self.hostile.stall_seconds)
            self.close_connection = True
        else:
            self.wfile.write(content)


def _range_of(header: str, size: int) -> tuple[int, int]:
    found = re.fullmatch(r"bytes=(\d+)-(\d*)", header)
    assert found is not None, header
    return int(found[1]), min(int(found[2]) + 1 if found[2] else size, size)


@contextmanager
def serving(folder: Path, **settings: Any) -> Iterator[HostileServer]:
    server = HostileServer(folder, **settings).start()
    try:
        yield server
    finally:
        server.stop()


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@contextmanager
def nginx(folder: Path, work: Path) -> Iterator[str]:
    """A real nginx on loopback; yields its URL."""
    binary = shutil.which("nginx", path="/usr/sbin:/usr/bin:/sbin:/bin")
    assert binary is not None
    port = free_port()
    work.mkdir()
    temporary = "".join(
        f"{kind}_temp_path {work}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (work / "nginx.conf").write_text(
        f"daemon off; pid {work}/nginx.pid; error_log {work}/error.log; user root; events {{}}\n"
        f"http {{ {temporary} gzip on; gzip_types *; access_log {work}/access.log;\n"
        f"server {{ listen 127.0.0.1:{port}; root {folder}; }} }}\n"
    )
    process = subprocess.Popen([binary, "-c", str(work / "nginx.conf"), "-p", str(work)], stderr=subprocess.PIPE)
    try:
        for _ in range(500):
            with socket.socket() as one:
                if one.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert process.poll() is None, process.stderr and process.stderr.read()
            time.sleep(0.01)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)


@contextmanager
def s3(folder: Path, bucket: str) -> Iterator[str]:
    """An S3 server on loopback with the folder's files in a bucket; yields its endpoint."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        endpoint = f"http://{host}:{port}"
        client = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1")
        client.create_bucket(Bucket=bucket)
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                client.upload_file(str(path), bucket, str(path.relative_to(folder)))
        yield endpoint
    finally:
        server.stop()
