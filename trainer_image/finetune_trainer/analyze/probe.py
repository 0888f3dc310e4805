"""Send held-out rows to the pods of both revisions, if users have sent too few requests."""

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from itertools import cycle, islice, zip_longest
from pathlib import Path
from typing import Any, Final

import httpx

from finetune_trainer.contract.configs.analyze import AnalysisProbe
from finetune_trainer.contract.outcomes import FailureReason
from finetune_trainer.contract.references import ArtifactRef
from finetune_trainer.rows import SPLIT_FILES, load_rows
from finetune_trainer.runtime.failure import StageFailure
from finetune_trainer.store import Store

REQUEST_SECONDS: Final = 120.0
MAX_TOKENS: Final = 64

ChatRequest = dict[str, Any]
"""Body of a request."""

logger = logging.getLogger(__name__)


def probe_requests(probe: AnalysisProbe, store: Store) -> list[ChatRequest]:
    """The test rows of each model's dataset as requests, in turn, and again from the first if there are few.

    Raises StageFailure (ARTIFACT_NOT_FOUND, ARTIFACT_CORRUPT, INVALID_CONFIG, STORE_UNAVAILABLE).
    """
    of_models = (_requests_of(model.name, model.dataset, store) for model in probe.models)
    rows = [request for turn in zip_longest(*of_models) for request in turn if request is not None]
    if not rows:
        raise StageFailure(FailureReason.INVALID_CONFIG, "the datasets of the models have no test rows")
    return list(islice(cycle(rows), probe.requests))


def _requests_of(model: str, dataset: str, store: Store) -> Iterator[ChatRequest]:
    folder = store.artifact(ArtifactRef(kind="datasets", digest=dataset), verify=True)
    for row in load_rows(folder / SPLIT_FILES["test"]):
        messages = [message.to_dict() for message in row.input]
        yield {"model": model, "messages": messages, "max_tokens": MAX_TOKENS, "temperature": 0}


def send(probe: AnalysisProbe, requests: Sequence[ChatRequest], executor: Executor) -> None:
    """Send all requests to each revision, one after the other. The servers count them and their failures."""
    headers = {}
    if probe.api_keys_path is not None:
        headers["Authorization"] = f"Bearer {_first_key(Path(probe.api_keys_path))}"
    with httpx.Client(timeout=REQUEST_SECONDS, trust_env=False, headers=headers) as client:
        revisions = (urls for urls in (probe.pods, probe.stable_pods) if urls)
        list(executor.map(lambda urls: _send(client, urls, requests), revisions))


def _send(client: httpx.Client, urls: Sequence[str], requests: Sequence[ChatRequest]) -> None:
    for number, request in enumerate(requests):
        url = urls[number % len(urls)]
        try:
            client.post(f"{url}/chat/completions", json=request)
        except httpx.HTTPError as error:
            logger.warning("%s: %s: %s", url, type(error).__name__, error)


def _first_key(folder: Path) -> str:
    """The first API key in a mounted Secret; empty if there is none, which the servers refuse."""
    files = sorted(each for each in folder.iterdir() if each.is_file() and not each.name.startswith("."))
    return files[0].read_text(encoding="utf-8").strip() if files else ""
