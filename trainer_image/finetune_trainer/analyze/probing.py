# SPDX-License-Identifier: Apache-2.0
"""Sends held-out rows of the models' datasets to pods of both revisions, and keeps the answers.

The operator saw the addresses of the pods when the Job began. A pod that ends leaves its address to another
one, possibly of another namespace, which must get neither rows nor API keys. So an address gets a request
only if its metrics, read just before, name models by digests that only these pods know.
"""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from itertools import cycle, islice, zip_longest
from pathlib import Path
from typing import Any, Final

import httpx

from finetune_trainer.analyze.pod_metrics import MAX_PROBLEM_CHARACTERS, get_metrics, served_digests
from finetune_trainer.contract.configs import AnalysisProbe, AnalyzeConfig, ProbedModel
from finetune_trainer.contract.references import ArtifactRef
from finetune_trainer.contract.vocabulary import FailureReason
from finetune_trainer.rows import SPLIT_FILES, Message, Row, load_rows
from finetune_trainer.runtime.termination import StageFailure
from finetune_trainer.store import Store
from finetune_trainer.tokens.reasoning import ReasoningParser, find_parser

MAX_TOKENS: Final = 256
"""Max tokens of an answer, as in an evaluation without `generation.maxTokens`."""
SPARE_TOKENS: Final = 16
"""Tokens that an answer may be longer than the expected one. One that is longer is wrong already."""

ChatRequest = Mapping[str, Any]
"""Body of a request."""


@dataclass(frozen=True, slots=True)
class ProbeRequest:
    """A row as a request to a model."""

    model: str
    body: ChatRequest
    accepted: frozenset[str] = field(default=frozenset())
    """Texts that are right; none if the expected answer has no text, such as a tool call."""


@dataclass(frozen=True, slots=True)
class ProbeRequests:
    """The rows to send to each revision."""

    rows: tuple[ProbeRequest, ...]
    """Each row once, one of each model in turn. Only they are independent, so only their answers count."""
    repeated: tuple[ProbeRequest, ...]
    """Rows again from the first, if there are fewer than requests."""


def probe_requests(probe: AnalysisProbe, store: Store) -> ProbeRequests:
    """The test rows of each model's dataset, in turn.

    Raises StageFailure (ARTIFACT_NOT_FOUND, ARTIFACT_CORRUPT, INVALID_CONFIG, STORE_UNAVAILABLE).
    """
    of_models = (_requests_of(model, store) for model in probe.models)
    rows = [request for turn in zip_longest(*of_models) for request in turn if request is not None]
    if not rows:
        raise StageFailure(FailureReason.INVALID_CONFIG, "the datasets of the models have no test rows")
    every = tuple(islice(cycle(rows), probe.requests))
    return ProbeRequests(every[: len(rows)], every[len(rows) :])


def _requests_of(model: ProbedModel, store: Store) -> Iterator[ProbeRequest]:
    if model.dataset is None:
        return
    folder = store.artifact(ArtifactRef(kind="datasets", digest=model.dataset), verify=True)
    parser = None if model.reasoning_parser is None else find_parser(model.reasoning_parser)
    for row in load_rows(folder / SPLIT_FILES["test"]):
        if row.label is not False:
            yield ProbeRequest(model.name, _body(model.name, row), _accepted(row, parser))


def _body(model: str, row: Row) -> ChatRequest:
    # A token has at least one byte.
    budget = min(MAX_TOKENS, len(row.output.encode()) + SPARE_TOKENS)
    body = {
        "model": model,
        "messages": [_turn(message) for message in row.input],
        "max_tokens": budget,
        "temperature": 0,
    }
    return body if row.tools is None else {**body, "tools": json.loads(row.tools)}


def _turn(message: Message) -> dict[str, Any]:
    """A turn as clients send it: they do not know which turns were learned."""
    return {key: value for key, value in message.to_dict().items() if key != "weight"}


def _accepted(row: Row, parser: ReasoningParser | None) -> frozenset[str]:
    text = row.output if parser is None else parser.split(row.output).content
    return frozenset({text.strip()} - {""})


REQUEST_SECONDS: Final = 60.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ProbeAnswers:
    """The answers of both revisions to one row, without white space around them; None without an answer."""

    model: str
    accepted: frozenset[str]
    new: str | None
    stable: str | None


@dataclass(frozen=True, slots=True)
class ProbedPod:
    """URLs of one pod."""

    metrics: str
    api: str


class ProbedPods:
    """Pods of one revision that get requests in turn."""

    def __init__(
        self,
        pods: Sequence[ProbedPod],
        digests: Sequence[str],
        client: httpx.Client,
        headers: Mapping[str, str],
    ) -> None:
        """Take the pods of a revision.

        Args:
            pods: the pods.
            digests: digests of the models that they have.
            client: client for metrics and answers.
            headers: headers of requests, with the API key if one is needed.
        """
        self._pods = list(pods)
        self._digests = frozenset(digests)
        self._client = client
        self._headers = headers
        self._sent = 0
        self.problem = ""
        """Why the last request without an answer had none; empty if all were answered."""

    def ask(self, request: ChatRequest) -> str | None:
        """The answer of the next pod; None without one. A pod that is not of the revision gets no more."""
        while self._pods:
            pod = self._pods[self._sent % len(self._pods)]
            try:
                digests = served_digests(get_metrics(self._client, pod.metrics))
                if not digests or not digests <= self._digests:
                    self._pods.remove(pod)
                    self._report(pod, "it does not show the models of the revision, so it gets no rows")
                    continue
                self._sent += 1
                return self._answer(pod, request)
            except (httpx.HTTPError, ValueError, LookupError, TypeError, AttributeError) as error:
                self._sent += 1
                self._report(pod, f"{type(error).__name__}: {error}")
                return None
        return None

    def _report(self, pod: ProbedPod, why: str) -> None:
        self.problem = f"{pod.api}: {why}"[:MAX_PROBLEM_CHARACTERS]
        logger.warning("%s", self.problem)

    def _answer(self, pod: ProbedPod, request: ChatRequest) -> str:
        response = self._client.post(
            f"{pod.api}/chat/completions", json=request, headers=self._headers, timeout=REQUEST_SECONDS
        )
        response.raise_for_status()
        content: str | None = response.json()["choices"][0]["message"]["content"]
        return (content or "").strip()


@dataclass(frozen=True, slots=True)
class BothRevisions:
    """Pods of both revisions that get the same rows."""

    new: ProbedPods
    stable: ProbedPods
    executor: Executor

    @classmethod
    def of(
        cls, config: AnalyzeConfig, probe: AnalysisProbe, client: httpx.Client, executor: Executor
    ) -> "BothRevisions":
        """The pods of a config."""
        headers = {}
        if probe.api_keys_path is not None:
            headers["Authorization"] = f"Bearer {_first_key(Path(probe.api_keys_path))}"

        def pods(metrics: Sequence[str], apis: Sequence[str], digests: Sequence[str]) -> ProbedPods:
            both = [ProbedPod(*urls) for urls in zip(metrics, apis, strict=True)]
            return ProbedPods(both, digests, client, headers)

        return cls(
            pods(config.pods, probe.pods, probe.digests),
            pods(config.stable_pods, probe.stable_pods, probe.stable_digests),
            executor,
        )

    def ask(self, request: ProbeRequest) -> ProbeAnswers:
        """Send a row to a pod of each revision at the same time."""
        new, stable = self.executor.map(lambda pods: pods.ask(request.body), (self.new, self.stable))
        return ProbeAnswers(request.model, request.accepted, new, stable)


def _first_key(folder: Path) -> str:
    """The first API key in a mounted Secret; empty if there is none, which the servers refuse."""
    files = sorted(each for each in folder.iterdir() if each.is_file() and not each.name.startswith("."))
    return files[0].read_text(encoding="utf-8").strip() if files else ""
