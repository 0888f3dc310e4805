# SPDX-License-Identifier: Apache-2.0
"""API keys of an endpoint: admitted and rejected requests, and rotation of keys."""

import hmac
import logging
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from finetune_trainer.serve import http_middleware
from finetune_trainer.serve.http_middleware import ApiKeys
from tests.trainer.serve.endpoint import Endpoint, serve_config, served_here

RIGHT, OTHER = "sk-right-0123456789", "sk-other-0123456789"


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def mount(folder: Path, **keys: str) -> None:
    """Mount a Secret as the kubelet does: the files are links into a folder that is replaced as a whole."""
    folder.mkdir(exist_ok=True)
    version = folder / f"..2030_{len(list(folder.iterdir()))}"
    version.mkdir()
    for name, key in keys.items():
        (version / name).write_text(key)
    link = folder / "..data"
    link.unlink(missing_ok=True)
    link.symlink_to(version.name)
    for visible in [each for each in folder.iterdir() if not each.name.startswith("..")]:
        visible.unlink()
    for name in keys:
        (folder / name).symlink_to(f"..data/{name}")


def admitted(keys: ApiKeys, key: str) -> bool:
    return keys.admit(f"Bearer {key}")


def test_every_key_of_the_folder_is_valid_and_nothing_else_is(tmp_path: Path) -> None:
    mount(tmp_path, alice=RIGHT, bob=f"{OTHER}\n", empty="\n")
    keys = ApiKeys(tmp_path)
    assert admitted(keys, RIGHT)
    assert admitted(keys, OTHER)
    for wrong in ("", " ", "alice", RIGHT[:-1], f"{RIGHT}x", RIGHT.upper(), "ü"):
        assert not admitted(keys, wrong), wrong


@pytest.mark.parametrize(
    "header", ["", RIGHT, f"Basic {RIGHT}", f"Bearer{RIGHT}", "Bearer", f"Token {RIGHT}"]
)
def test_a_key_is_a_bearer_token(tmp_path: Path, header: str) -> None:
    mount(tmp_path, alice=RIGHT)
    assert not ApiKeys(tmp_path).admit(header)
    assert ApiKeys(tmp_path).admit(f"bearer  {RIGHT}")


def test_keys_are_rotated_without_a_restart(tmp_path: Path) -> None:
    clock = Clock()
    mount(tmp_path, alice=RIGHT)
    keys = ApiKeys(tmp_path, clock)
    assert not admitted(keys, OTHER)
    mount(tmp_path, alice=RIGHT, next=OTHER)
    clock.now += 5
    assert admitted(keys, RIGHT)
    assert admitted(keys, OTHER)
    mount(tmp_path, next=OTHER)
    clock.now += 5
    assert not admitted(keys, RIGHT)
    assert admitted(keys, OTHER)


@pytest.mark.parametrize("key", [RIGHT, OTHER, "x", ""])
def test_every_key_is_compared_whatever_the_result(
    tmp_path: Path, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The duration of a comparison must not say which key is right, or how much of it."""
    mount(tmp_path, alice=RIGHT, bob=OTHER, carol="sk-third")
    keys = ApiKeys(tmp_path)
    lengths: list[tuple[int, int]] = []
    compare = hmac.compare_digest

    def counted(valid: bytes, given: bytes) -> bool:
        lengths.append((len(valid), len(given)))
        return compare(valid, given)

    monkeypatch.setattr(hmac, "compare_digest", counted)
    assert admitted(keys, key) == (key in (RIGHT, OTHER))
    assert lengths == [(32, 32)] * 3


@pytest.mark.parametrize("keys", [{}, {"alice": ""}, {"alice": " \n"}], ids=str)
def test_a_secret_without_a_key_opens_nothing(tmp_path: Path, keys: dict[str, str]) -> None:
    mount(tmp_path, **keys)
    for header in ("", "Bearer ", "Bearer x"):
        assert not ApiKeys(tmp_path).admit(header)
    assert not ApiKeys(tmp_path / "missing").admit("Bearer ")


@pytest.fixture(scope="module")
def guarded(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    folder = tmp_path_factory.mktemp("keys")
    mount(folder, alice=RIGHT, bob=OTHER)
    with served_here(serve_config(root, api_keys_path=str(folder))) as served:
        yield served


def client(endpoint: Endpoint, key: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{endpoint.url}/v1", api_key=key, max_retries=0, timeout=60)


def ask(endpoint: Endpoint, key: str) -> str | None:
    answer = client(endpoint, key).chat.completions.create(
        model="base", messages=[{"role": "user", "content": "Hello"}], max_tokens=2
    )
    return answer.choices[0].message.content


@pytest.mark.parametrize("key", [RIGHT, OTHER])
def test_the_openai_client_with_a_right_key_is_answered(guarded: Endpoint, key: str) -> None:
    assert ask(guarded, key) is not None
    assert {model.id for model in client(guarded, key).models.list()} >= {"base"}


def test_the_openai_client_with_a_wrong_key_is_refused_in_its_own_words(
    guarded: Endpoint, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG), pytest.raises(openai.AuthenticationError) as refused:
        ask(guarded, "sk-wrong-0123456789")
    assert refused.value.status_code == 401
    assert refused.value.code == "invalid_api_key"
    assert refused.value.type == "invalid_request_error"
    assert refused.value.response.headers["www-authenticate"] == "Bearer"
    told = refused.value.response.text + caplog.text
    assert not any(key in told for key in (RIGHT, OTHER, "sk-wrong-0123456789"))


@pytest.mark.parametrize("path", ["/v1/models", "/v1/chat/completions", "/", "/docs", "/health/", "//health"])
def test_nothing_but_probes_and_metrics_is_answered_without_a_key(guarded: Endpoint, path: str) -> None:
    answer = guarded.http.get(path)
    assert answer.status_code == 401
    assert "needs an API key" in answer.json()["error"]["message"]


def test_probes_and_metrics_need_no_key_and_refusals_are_counted(guarded: Endpoint) -> None:
    assert guarded.health() == 200
    sample = 'finetune_serve_requests_total{code="401",model="unknown"}'
    before = guarded.metric(sample)
    guarded.http.post("/v1/chat/completions", json={})
    assert guarded.metric(sample) == before + 1


def test_a_running_server_takes_new_keys_and_forgets_old_ones(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_middleware, "_REFRESH_SECONDS", 0)
    mount(tmp_path, alice=RIGHT)
    with served_here(serve_config(root, models=(), api_keys_path=str(tmp_path))) as served:
        assert ask(served, RIGHT) is not None
        with pytest.raises(openai.AuthenticationError):
            ask(served, OTHER)

        mount(tmp_path, alice=RIGHT, next=OTHER)
        assert ask(served, RIGHT) is not None
        assert ask(served, OTHER) is not None

        mount(tmp_path, next=OTHER)
        with pytest.raises(openai.AuthenticationError):
            ask(served, RIGHT)
        assert ask(served, OTHER) is not None


def test_an_endpoint_without_keys_asks_for_none(endpoint: Endpoint) -> None:
    assert endpoint.http.get("/v1/models").status_code == 200
