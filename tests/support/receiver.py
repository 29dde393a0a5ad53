"""A webhook that people are told by: what Apprise's `json://` posts to."""

from __future__ import annotations

import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import orjson


class Receiver:
    """Keeps the messages it took: `title`, `message`, `type`. Refuses them while `status` is not 200; takes `seconds`
    for each."""

    def __init__(self, port: int = 0) -> None:
        self.messages: list[dict[str, Any]] = []
        self.status = 200
        self.seconds = 0.0
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                told = orjson.loads(self.rfile.read(int(self.headers["content-length"])))
                if receiver.status == 200:
                    receiver.messages.append(told)
                time.sleep(receiver.seconds)
                self.send_response(receiver.status)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()
        self.url = f"json://127.0.0.1:{self._server.server_port}/hook-secret"

    def taken(self) -> list[dict[str, Any]]:
        """The messages since it was asked last."""
        messages, self.messages = self.messages, []
        return messages

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
