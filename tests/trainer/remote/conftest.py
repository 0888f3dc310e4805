"""Servers of these tests: an S3 server and a certificate authority for all, web servers for each."""

from collections.abc import Iterator

import pytest

from finetune_trainer.remote import retries
from tests.s3server import S3Server
from tests.trainer.remote.hubserver import HubServer
from tests.trainer.remote.webserver import WebServer
from tools.cluster.pki import Authority


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
    """Another host."""
    with WebServer(authority) as server:
        yield server


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with HubServer() as server:
        yield server


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attempts follow each other at once."""
    monkeypatch.setattr(retries, "FIRST_PAUSE_SECONDS", 0.001)
