# SPDX-License-Identifier: Apache-2.0
"""The errors for responses of the API server, and how much of a list is read at once."""

import json

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from kubernetes.aio.client import Configuration

from finetune_operator.engine.client import MAX_PAGE_BYTES, KubernetesClient, find_proxy, make_error
from finetune_operator.engine.errors import AlreadyExists, Conflict, Rejected, Unavailable, Undeclared
from finetune_operator.engine.resources import JOB, SERVICE, TOKEN_REVIEW, ResourceType, ResourceTypes


def status(**fields: object) -> bytes:
    return json.dumps({"kind": "Status", "status": "Failure", **fields}).encode()


def test_a_taken_name_is_told_from_other_conflicts() -> None:
    assert type(make_error(409, None, status(reason="AlreadyExists"))) is AlreadyExists
    assert type(make_error(409, None, status(reason="Conflict"))) is Conflict


@pytest.mark.parametrize("code", [401, 408, 429, 500, 502, 503, 504])
def test_what_may_pass_is_waited_for(code: int) -> None:
    assert isinstance(make_error(code, None, status(message="not now")), Unavailable)


def test_a_field_that_the_installed_definition_lacks_is_no_passing_trouble() -> None:
    message = "failed to create typed patch object: .status.news: field not declared in schema"
    error = make_error(500, None, status(message=message))
    assert isinstance(error, Undeclared)
    assert error.message == message


def test_the_servers_wish_for_a_pause_is_kept() -> None:
    error = make_error(429, "7", status(message="slow down"))
    assert isinstance(error, Unavailable)
    assert error.retry_after_seconds == 7


@pytest.mark.parametrize("code", [400, 403, 404, 410, 413, 422])
def test_other_refusals_carry_reason_and_message_for_the_user(code: int) -> None:
    error = make_error(code, None, status(reason="Forbidden", message="exceeded quota: gpus"))
    assert isinstance(error, Rejected)
    assert (error.code, error.reason, error.message) == (code, "Forbidden", "exceeded quota: gpus")


def test_causes_name_reasons_and_fields() -> None:
    causes = [{"reason": "NamespaceTerminating", "field": "metadata.namespace"}]
    error = make_error(403, None, status(reason="Forbidden", message="no", details={"causes": causes}))
    assert isinstance(error, Rejected)
    assert error.causes == {"NamespaceTerminating", "metadata.namespace"}


def test_an_answer_that_is_no_status_still_says_what_it_says() -> None:
    error = make_error(502, None, b"<html>bad gateway</html>")
    assert isinstance(error, Unavailable)
    assert "bad gateway" in str(error)


def test_paths_are_those_of_the_api() -> None:
    custom = ResourceType("finetune.dev/v1alpha1", "ComputeProfile", "computeprofiles", namespaced=False)
    assert JOB.path("team-a", "train", "status") == "/apis/batch/v1/namespaces/team-a/jobs/train/status"
    assert JOB.path() == "/apis/batch/v1/jobs"
    assert custom.path("ignored", "gpu") == "/apis/finetune.dev/v1alpha1/computeprofiles/gpu"
    assert TOKEN_REVIEW.path() == "/apis/authentication.k8s.io/v1/tokenreviews"


def test_an_unknown_type_is_named() -> None:
    with pytest.raises(KeyError, match=r"Widget of example\.com/v1"):
        ResourceTypes().of({"apiVersion": "example.com/v1", "kind": "Widget"})


@pytest.mark.parametrize(
    ("server", "proxy"),
    [
        ("https://api.example:6443", "http://proxy.example:3128"),
        ("https://10.0.0.1", None),
        ("http://api.example", None),
    ],
    ids=["as the environment says", "one that it excludes", "another scheme"],
)
def test_a_proxy_is_taken_from_the_environment(
    server: str, proxy: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example:3128")
    monkeypatch.setenv("NO_PROXY", "10.0.0.1,.svc")
    assert find_proxy(server) == proxy


class Lists:
    """A fake API server with large Services, of which a list has as many as the request allows."""

    def __init__(self, sizes: list[int]) -> None:
        self.limits: list[int] = []
        self._sizes = sizes

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/api/v1/services", self._list)
        return app

    async def _list(self, request: web.Request) -> web.Response:
        limit, begin = int(request.query["limit"]), int(request.query.get("continue", "0"))
        self.limits.append(limit)
        sizes = self._sizes[begin : begin + limit]
        items = [{"metadata": {"name": f"s-{begin + i}"}, "spec": "x" * size} for i, size in enumerate(sizes)]
        end = begin + len(items)
        metadata = {"resourceVersion": "7"} | ({"continue": str(end)} if end < len(self._sizes) else {})
        return web.json_response({"metadata": metadata, "items": items})


async def test_a_page_of_a_list_that_is_too_large_is_read_in_smaller_ones() -> None:
    sizes = [2 * MAX_PAGE_BYTES] + [MAX_PAGE_BYTES // 20] * 60
    server = Lists(sizes)
    async with TestServer(server.app()) as listening:
        cluster = KubernetesClient(
            Configuration(host=str(listening.make_url("/")).rstrip("/")), ResourceTypes(), "test"
        )
        try:
            pages = [[each["metadata"]["name"] for each in page] async for page, _ in cluster.pages(SERVICE)]
        finally:
            await cluster.close()
    assert [name for page in pages for name in page] == [f"s-{number}" for number in range(len(sizes))]
    assert server.limits[:4] == [100, 25, 6, 1]
    assert max(len(page) for page in pages) <= 25
