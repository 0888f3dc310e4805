# SPDX-License-Identifier: Apache-2.0
"""A Git repository that is served over HTTP by the server of Git itself."""

import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

import yaml

from tests.integration.api import Object
from tools.cluster.commands import run
from tools.cluster.layout import LOOPBACK

IDENTITY: Final = ("-c", "user.name=team", "-c", "user.email=team@test.invalid")
BRANCH: Final = "main"


class Repository:
    """A bare repository in a folder, and a working tree.

    Attributes:
        tree: folder of the working tree.
    """

    def __init__(self, folder: Path) -> None:
        self.tree = folder / "tree"
        self._bare = folder / "served" / "repository.git"
        for path, options in ((self._bare, ["--bare"]), (self.tree, [])):
            path.mkdir(parents=True)
            self._git(path, "init", "--quiet", f"--initial-branch={BRANCH}", *options)

    def write(self, path: str, *documents: Object) -> None:
        """Write a file of the working tree."""
        (self.tree / path).write_text(yaml.safe_dump_all(documents))

    def remove(self, path: str) -> None:
        """Remove a file of the working tree."""
        (self.tree / path).unlink()

    def push(self, message: str) -> str:
        """Commit and push the working tree, and return the hash of the commit."""
        self._git(self.tree, "add", "--all")
        self._git(self.tree, "commit", "--quiet", f"--message={message}")
        self._git(self.tree, "push", "--quiet", str(self._bare), BRANCH)
        return self._git(self.tree, "rev-parse", "HEAD").strip()

    @contextmanager
    def served(self) -> Iterator[str]:
        """URL of the repository during the block."""
        root = self._bare.parent

        class Handler(_GitHandler):
            folder = root

        server = ThreadingHTTPServer((str(LOOPBACK), 0), Handler)
        thread = threading.Thread(target=server.serve_forever, name="git", daemon=True)
        thread.start()
        yield f"http://{LOOPBACK}:{server.server_port}/{self._bare.name}"
        server.shutdown()
        server.server_close()

    @staticmethod
    def _git(folder: Path, *arguments: str) -> str:
        return run(["git", "-C", str(folder), *IDENTITY, *arguments])


class _GitHandler(BaseHTTPRequestHandler):
    """Runs `git http-backend`, a CGI program, for each request."""

    protocol_version = "HTTP/1.1"
    folder: Path

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path, _, query = self.path.partition("?")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        environment = {
            "PATH": os.environ["PATH"],
            "GIT_PROJECT_ROOT": str(self.folder),
            "GIT_HTTP_EXPORT_ALL": "1",
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "REQUEST_METHOD": self.command,
            "CONTENT_TYPE": self.headers.get("Content-Type", ""),
            "CONTENT_LENGTH": str(len(body)),
            "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
            "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
        }
        command = ["git", "http-backend"]
        output = subprocess.run(command, input=body, capture_output=True, env=environment, check=True).stdout
        head, _, content = output.partition(b"\r\n\r\n")
        fields = dict(line.split(": ", 1) for line in head.decode().split("\r\n"))
        self.send_response(int(fields.pop("Status", "200").split()[0]))
        for name, value in fields.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Write no log."""
