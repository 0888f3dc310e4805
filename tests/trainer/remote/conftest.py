# SPDX-License-Identifier: Apache-2.0
"""Servers of these tests: a shared S3 server and certificate authority, and web servers per test."""

from collections.abc import Iterator

import pytest

from finetune_trainer.remote import retries
from tests.s3server import S3Server
from tests.trainer.remote.hubserver import HubServer
from tests.trainer.remote.webserver import WebServer
from tools.cluster.credentials import Authority


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with S3Server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.create(tmp_path_factory.mktemp("authority"), "tests")


@pytest.fixture
def web(authority: Authority) -> Iterator[WebServer]:
    with WebServer(authority) as server:
        yield server


@pytest.fixture
def elsewhere(authority: Authority) -> Iterator[WebServer]:
    """A web server under another host name."""
    with WebServer(authority) as server:
        yield server


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with HubServer() as server:
        yield server


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the pauses between attempts."""
    monkeypatch.setattr(retries, "FIRST_PAUSE_SECONDS", 0.001)
