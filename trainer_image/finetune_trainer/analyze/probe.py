# SPDX-License-Identifier: Apache-2.0
"""The requests that an analysis sends itself: held-out rows of the datasets of the models."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import cycle, islice, zip_longest
from typing import Any, Final

from finetune_trainer.contract.configs import AnalysisProbe, ProbedModel
from finetune_trainer.contract.references import ArtifactRef
from finetune_trainer.contract.vocabulary import FailureReason
from finetune_trainer.rows import SPLIT_FILES, Message, Row, load_rows
from finetune_trainer.runtime.termination import StageFailure
from finetune_trainer.store import Store
from finetune_trainer.tokens.reasoning import ReasoningParser, parser_named

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
    parser = None if model.reasoning_parser is None else parser_named(model.reasoning_parser)
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
