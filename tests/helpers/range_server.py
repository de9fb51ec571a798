"""A web server that sends parts of files, as object stores do."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from threading import Thread
from typing import Any, BinaryIO


class Requests:
    """What a server was asked for, and how it answers.

    Attributes:
        asked: Path and range of every request.
        failures: Requests to answer with 503 before any other.
        ranges: Whether parts of files are sent.
    """

    def __init__(self) -> None:
        self.url = ""
        self.asked: list[tuple[str, str | None]] = []
        self.failures = 0
        self.ranges = True


@contextmanager
def serve(folder: Path) -> Iterator[Requests]:
    """Serve a folder on this machine."""
    requests = Requests()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, requests=requests, directory=str(folder))) as server:
        requests.url = f"http://127.0.0.1:{server.server_port}"
        thread = Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield requests
        server.shutdown()
        thread.join()


class _Handler(SimpleHTTPRequestHandler):
    def __init__(self, *arguments: Any, requests: Requests, directory: str) -> None:
        self.requests = requests
        super().__init__(*arguments, directory=directory)

    def send_head(self) -> BytesIO | BinaryIO | None:  # type: ignore[override]
        wanted = self.headers.get("Range")
        self.requests.asked.append((self.path, wanted))
        if self.requests.failures:
            self.requests.failures -= 1
            self.send_error(503)
            return None
        part = re.fullmatch(r"bytes=(\d+)-(\d+)", wanted or "")
        file = Path(self.translate_path(self.path))
        if part is None or not self.requests.ranges or not file.is_file():
            return super().send_head()
        start, last = map(int, part.groups())
        content = file.read_bytes()[start : last + 1]
        self.send_response(206)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Content-Range", f"bytes {start}-{start + len(content) - 1}/{file.stat().st_size}")
        self.end_headers()
        return BytesIO(content)

    def log_message(self, format: str, *args: Any) -> None: ...
