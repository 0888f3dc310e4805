# SPDX-License-Identifier: Apache-2.0
"""Fake object stores of Google and Azure, with the requests that reading a folder needs."""

import hashlib
import json
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import parse_qs, unquote, urlsplit
from xml.etree import ElementTree

from typing_extensions import override

from tests.trainer.remote.webserver import Answer, Seen, WebServer

MODIFIED: Final = "Wed, 02 Jan 2030 00:00:00 GMT"


class CloudServer(WebServer):
    """`files` by container and name, such as `rows/2030/a.jsonl`."""

    def listed(self, container: str, prefix: str) -> tuple[dict[str, bytes], list[str]]:
        """Return the objects directly below a prefix, and its subfolders."""
        above = f"{container}/{prefix}"
        below = {
            name.removeprefix(above): body for name, body in self.files.items() if name.startswith(above)
        }
        objects = {prefix + name: body for name, body in below.items() if "/" not in name}
        return objects, sorted({f"{prefix}{name.partition('/')[0]}/" for name in below if "/" in name})


class GoogleServer(CloudServer):
    """Server of the JSON API."""

    @override
    def answer(self, asked: Seen) -> Answer:
        url = urlsplit(asked.path)
        container, _, name = unquote(url.path).partition("/b/")[2].partition("/o")
        body = self.files.get(container + name)
        if name and body is None:
            return _json({"error": {"code": 404, "message": "No such object"}}, HTTPStatus.NOT_FOUND)
        if body is not None:
            if "/download/" in url.path or "alt=media" in url.query:
                return Answer(body)
            return _json(self._object(container, name.lstrip("/"), body))
        query = parse_qs(url.query)
        objects, folders = self.listed(container, query.get("prefix", [""])[0])
        return _json(
            {"items": [self._object(container, *each) for each in objects.items()], "prefixes": folders}
        )

    def _object(self, container: str, name: str, body: bytes) -> dict[str, Any]:
        described = {"bucket": container, "name": name, "size": str(len(body)), "etag": _etag(body)}
        return {"kind": "storage#object", **described}


class AzureServer(CloudServer):
    """Server of the Blob API."""

    @override
    def answer(self, asked: Seen) -> Answer:
        url = urlsplit(asked.path)
        path = unquote(url.path).lstrip("/")
        query = parse_qs(url.query)
        if query.get("comp") == ["list"]:
            prefix = query.get("prefix", [""])[0]
            return _xml(path, *self.listed(path, prefix))
        if path not in self.files:
            return Answer(status=HTTPStatus.NOT_FOUND, headers=(("x-ms-error-code", "BlobNotFound"),))
        body = self.files[path]
        described = (("ETag", _etag(body)), ("Last-Modified", MODIFIED), ("x-ms-blob-type", "BlockBlob"))
        return Answer(body, headers=described)


def _etag(body: bytes) -> str:
    return f'"{hashlib.sha256(body).hexdigest()}"'


def _json(value: dict[str, Any], status: int = HTTPStatus.OK) -> Answer:
    return Answer(json.dumps(value).encode(), status, (("Content-Type", "application/json"),))


def _xml(container: str, objects: dict[str, bytes], folders: list[str]) -> Answer:
    root = ElementTree.Element("EnumerationResults", {"ContainerName": container})
    blobs = ElementTree.SubElement(root, "Blobs")
    for name, body in objects.items():
        blob = ElementTree.SubElement(blobs, "Blob")
        ElementTree.SubElement(blob, "Name").text = name
        properties = ElementTree.SubElement(blob, "Properties")
        described = {"Last-Modified": MODIFIED, "Etag": _etag(body), "Content-Length": str(len(body))}
        for key, value in {**described, "BlobType": "BlockBlob"}.items():
            ElementTree.SubElement(properties, key).text = value
    for folder in folders:
        ElementTree.SubElement(ElementTree.SubElement(blobs, "BlobPrefix"), "Name").text = folder
    ElementTree.SubElement(root, "NextMarker")
    return Answer(ElementTree.tostring(root), headers=(("Content-Type", "application/xml"),))
