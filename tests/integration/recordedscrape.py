# SPDX-License-Identifier: Apache-2.0
"""A server whose metrics are those of a recorded scrape, under load."""

import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from typing import Final, Self

COUNTED: Final = re.compile(r"^(\S+_(?:total|bucket|count|sum)(?:{.*})?) (\S+)$", re.MULTILINE)
"""Line of a counter or histogram: name with labels, value."""


class RecordedScrape:
    """Serves a recorded scrape from `with` to its end. Each scrape adds the recorded counts once more."""

    def __init__(self, file: Path) -> None:
        text, scrapes = file.read_text(), count(1)

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                times = next(scrapes)
                body = COUNTED.sub(lambda line: f"{line[1]} {float(line[2]) * times}", text).encode()
                self.send_response(200)
                self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port: int = self._server.server_address[1]

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
