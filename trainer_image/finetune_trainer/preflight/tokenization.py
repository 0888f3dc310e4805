# SPDX-License-Identifier: Apache-2.0
"""Tokenize the rows of a dataset once, for every process and every run that trains on them."""

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from finetune_trainer.contract.base import Digest
from finetune_trainer.contract.references import ArtifactRef
from finetune_trainer.contract.vocabulary import ExitCode, FailureReason, SplitName
from finetune_trainer.preflight.row_lengths import TokenLengths, count_of, first_of
from finetune_trainer.rows import Row, read_rows
from finetune_trainer.runtime.termination import StageFailure
from finetune_trainer.stage.context import StageMeter
from finetune_trainer.store import DerivedRef, Store
from finetune_trainer.tokens.chat_template import MODEL_TEMPLATE, ControlTokens, template_name
from finetune_trainer.tokens.encoding import Encoder
from finetune_trainer.tokens.rendering import RowNotEncodable
from finetune_trainer.tokens.token_files import (
    FoundRows,
    TokenFiles,
    TokenFileWriter,
    encoding_name,
    row_kind,
)

ROW_COST: Final = 1 << 18
"""Cost of tokenizing one row, in bytes read that take about as long."""
MAX_BATCH_ROWS: Final = 256
MAX_BATCH_CHARACTERS: Final = 1 << 20
"""Rows and characters that are tokenized at once. The tokens of a batch are in memory as Python objects."""


@dataclass(frozen=True)
class RowFiles:
    """The prepared rows of a dataset."""

    dataset: ArtifactRef
    paths: Mapping[SplitName, Path]
    counts: Mapping[SplitName, int]
    """Number of rows of each split."""

    @property
    def cost(self) -> int:
        """Cost of tokenizing all rows on the meter."""
        return sum(map(self.cost_of, self.counts))

    def cost_of(self, split: SplitName) -> int:
        """Cost of tokenizing the rows of one split."""
        return ROW_COST * self.counts[split]


@dataclass(frozen=True)
class TokenizedRows:
    """The tokens of all rows, in the store."""

    digest: Digest
    files: TokenFiles


def tokenize(rows: RowFiles, encoder: Encoder, store: Store, meter: StageMeter) -> TokenizedRows:
    """Encode all rows and publish their tokens, unless the store already has them. Holds one batch in memory.

    Raises StageFailure: INVALID_DATA naming the rows that the chat template rejects, ARTIFACT_CORRUPT,
    STORE_UNAVAILABLE; Preempted.
    """
    name = encoding_name(encoder)
    ref = store.derived(rows.dataset, name)
    if ref is not None:
        meter.begin("the store already has the tokens of these rows")
        meter.add(rows.cost)
    else:
        meter.begin("tokenizing the rows")
        with store.staging() as staging:
            _write(rows, encoder, staging, meter)
            ref = DerivedRef(rows.dataset, store.publish(rows.dataset, staging))
        store.name_derived(ref, name)
    return TokenizedRows(ref.digest, TokenFiles(store.artifact(ref)))


def measure_rows(rows: RowFiles, split: SplitName, encoder: Encoder, meter: StageMeter) -> TokenLengths:
    """The lengths of the rows of one split, whose tokens are not kept.

    Raises StageFailure (INVALID_DATA) naming the rows that the chat template rejects; Preempted.
    """
    with tempfile.TemporaryDirectory() as name:
        _write(replace(rows, paths={split: rows.paths[split]}), encoder, Path(name), meter)
        return TokenLengths.of(TokenFiles(Path(name)), split)


def _write(rows: RowFiles, encoder: Encoder, folder: Path, meter: StageMeter) -> None:
    writer, control_tokens = TokenFileWriter(folder, row_kind(encoder)), ControlTokens(encoder.tokenizer)
    rejected: dict[SplitName, FoundRows] = {}
    for split, path in rows.paths.items():
        number = 0
        bad = rejected[split] = FoundRows()
        with writer.split(split) as (append, facts):
            for batch in _batches(read_rows(path)):
                for row, encoded in zip(batch, encoder.encode_batch(batch), strict=True):
                    meter.add(ROW_COST)
                    number += 1
                    if isinstance(encoded, RowNotEncodable):
                        bad.add(number, str(encoded))
                        continue
                    append(encoded)
                    control_token = control_tokens.first_in(row)
                    if control_token is not None:
                        facts.with_control_tokens.add(number, control_token)
    writer.finish()
    _require_none(rejected, template_name(encoder.tokenizer))


def _require_none(rejected: Mapping[SplitName, FoundRows], template: str) -> None:
    """Raise StageFailure (INVALID_DATA) if there are rejected rows."""
    count = sum(found.rows for found in rejected.values())
    if count:
        reasons = [reason for found in rejected.values() for _, reason in found.first]
        source = (
            "the base model's chat template"
            if template == MODEL_TEMPLATE
            else f"the chat template {template}, which a base model without one of its own gets,"
        )
        raise StageFailure(
            FailureReason.INVALID_DATA,
            f"{source} rejects {count_of(count)} ({first_of(rejected)}): {reasons[0]}",
            ExitCode.BAD_DATA,
        )


def _batches(rows: Iterable[Row]) -> Iterator[list[Row]]:
    batch: list[Row] = []
    characters = 0
    for row in rows:
        batch.append(row)
        characters += sum(len(message.content) for message in row.messages) + len(row.rejected or "")
        if len(batch) == MAX_BATCH_ROWS or characters >= MAX_BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
