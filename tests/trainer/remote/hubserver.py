# SPDX-License-Identifier: Apache-2.0
"""A fake Hugging Face Hub, with the requests that its library needs to read."""

import hashlib
import json
import re
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import unquote

from typing_extensions import override

from tests.trainer.remote.webserver import Answer, Seen, WebServer

API: Final = re.compile(
    r"/api/(?P<kind>models|datasets)/(?P<name>[^/]+/[^/]+)"
    r"(?:/(?P<what>revision|tree|paths-info)/(?P<revision>[^/]+)(?:/(?P<folder>.*))?)?"
)
RESOLVE: Final = re.compile(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
LARGE_BYTES: Final = 100_000
"""Size from which the server stores a file as the Hub stores weights: with a SHA-256."""


@dataclass
class Repository:
    """Files of each commit, and the commit of `main`."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    main: str = ""

    def commit(self, files: dict[str, bytes]) -> str:
        """Commit files to `main`. Returns the commit."""
        digest = hashlib.sha1(usedforsecurity=False)
        for name, content in sorted(files.items()):
            digest.update(name.encode() + content)
        self.main = digest.hexdigest()
        self.commits[self.main] = files
        return self.main


class HubServer(WebServer):
    """Repositories by kind and name, such as `models/team/tiny`."""

    def __init__(self, address: str = "127.0.0.1") -> None:
        super().__init__(address=address)
        self.repositories: dict[str, Repository] = {}
        self.content_host: str | None = None
        """Another server that requests for content are redirected to."""

    @override
    def answer(self, asked: Seen) -> Answer:
        path = unquote(asked.path.partition("?")[0])
        if api := API.fullmatch(path):
            return self._api(asked, **api.groupdict())
        if resolve := RESOLVE.fullmatch(path):
            kind = "datasets" if resolve[1] else "models"
            return self._resolve(kind, resolve[2], resolve[3], resolve[4])
        return Answer(status=HTTPStatus.NOT_FOUND)

    def _files(self, kind: str, name: str, revision: str | None) -> tuple[str, dict[str, bytes]] | None:
        repository = self.repositories.get(f"{kind}/{name}")
        if repository is None:
            return None
        commit = repository.main if revision in {None, "main"} else str(revision)
        files = repository.commits.get(commit)
        return None if files is None else (commit, files)

    def _api(
        self, asked: Seen, *, kind: str, name: str, what: str | None, revision: str | None, folder: str | None
    ) -> Answer:
        if f"{kind}/{name}" not in self.repositories:
            return _absent("RepoNotFound")
        found = self._files(kind, name, revision)
        if found is None:
            return _absent("RevisionNotFound")
        commit, files = found
        if what in {None, "revision"}:
            return _json({"id": name, "sha": commit, "siblings": [{"rfilename": path} for path in files]})
        if what == "tree":
            return _json(_children(folder or "", files))
        paths = json.loads(asked.body)["paths"]
        return _json([_entry(path, files[path]) for path in paths if path in files])

    def _resolve(self, kind: str, name: str, revision: str, path: str) -> Answer:
        found = self._files(kind, name, revision)
        if found is None or path not in found[1]:
            return _absent("EntryNotFound")
        commit, files = found
        described = (("X-Repo-Commit", commit), ("ETag", f'"{_digest(files[path])}"'))
        if self.content_host is not None:
            where = ("Location", f"{self.content_host}/{commit}/{path}")
            return Answer(status=HTTPStatus.FOUND, headers=(*described, where))
        return Answer(files[path], headers=described)


def _entry(path: str, content: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": _digest(content)[:40]}
    if len(content) >= LARGE_BYTES:
        entry["lfs"] = {"oid": _digest(content), "size": len(content), "pointerSize": 134}
    return entry


def _children(folder: str, files: dict[str, bytes]) -> list[dict[str, Any]]:
    above = f"{folder}/" if folder else ""
    below = {path.removeprefix(above): content for path, content in files.items() if path.startswith(above)}
    folders = sorted({name.partition("/")[0] for name in below if "/" in name})
    return [
        *({"type": "directory", "path": above + name, "oid": "0" * 40} for name in folders),
        *(_entry(above + name, content) for name, content in below.items() if "/" not in name),
    ]


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _json(value: Any) -> Answer:
    return Answer(json.dumps(value).encode(), headers=(("Content-Type", "application/json"),))


def _absent(code: str) -> Answer:
    return Answer(status=HTTPStatus.NOT_FOUND, headers=(("X-Error-Code", code),))
