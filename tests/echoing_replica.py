"""Stands behind an ingress in its tests: an HTTP server that repeats the headers it was sent."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Replica(BaseHTTPRequestHandler):
    """Answers with the headers it was sent; `/slow` takes longer than the ingress waits.

    So does `PUT /v1/items`, which the ingress knows to be slow.
    """

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", "0")))
        if self.path == "/slow":
            time.sleep(1.0)
        body = json.dumps([[name.lower(), value] for name, value in self.headers.items()]).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_PUT(self) -> None:
        time.sleep(1.0)
        self.do_GET()

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the test says what was wrong."""


@contextmanager
def replica() -> Iterator[int]:
    """A replica; gives its port."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Replica) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()
