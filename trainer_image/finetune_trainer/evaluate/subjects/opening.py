# SPDX-License-Identifier: Apache-2.0
"""The subjects of an evaluation: which are optional, their files, and the rows as each is prompted."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

from transformers import PreTrainedTokenizerBase

from finetune_trainer.contract.base import Digest
from finetune_trainer.contract.configs import EvaluateConfig
from finetune_trainer.contract.dataset import Checks
from finetune_trainer.contract.evaluation import LiveModel, UnmeasuredSubject
from finetune_trainer.contract.references import ArtifactRef
from finetune_trainer.contract.vocabulary import FULL_MODEL, CheckpointType, ExitCode, FailureReason, Subject
from finetune_trainer.data.checks.scanner import Scanner
from finetune_trainer.evaluate.checks import sensitive_hashes
from finetune_trainer.evaluate.examples import Example, encode_examples
from finetune_trainer.evaluate.subjects.prompted import encode_prompted
from finetune_trainer.model.bundle import read_chat_template, read_stop_ids, require_bundle
from finetune_trainer.rows import SPLIT_FILES, Row, read_rows
from finetune_trainer.runtime.termination import StageFailure
from finetune_trainer.scoring.metric_scope import MetricScope, ScopeSource
from finetune_trainer.store import RunFolder, Store
from finetune_trainer.tokens.chat_template import TemplateArguments, load_tokenizer


@dataclass(frozen=True)
class Weights:
    """Folders of the weights of a model."""

    base: Path
    """A whole model."""
    adapter: Path | None = None
    quantized: bool = False
    """Whether the linear layers of the base model are in 4 bits."""


@dataclass(frozen=True)
class EvaluatedSubject:
    """A subject with the rows as its prompts have them."""

    name: Subject
    weights: Weights
    tokenizer: PreTrainedTokenizerBase
    """With the chat template of its prompts."""
    examples: Sequence[Example]
    stop_ids: frozenset[int] = frozenset()
    """Tokens that end an answer by the files of its Checkpoint."""


OPTIONAL: Final[frozenset[Subject]] = frozenset({"Prompted", "Live"})
FINAL_CODES: Final = frozenset({ExitCode.BAD_CONFIG, ExitCode.BAD_DATA})
"""Exit codes of failures that another attempt would repeat."""
MAX_MESSAGE_CHARACTERS: Final = 512

logger = logging.getLogger(__name__)


@contextmanager
def record_optional_failure(
    subject: Subject, unmeasured: list[UnmeasuredSubject], live: LiveModel | None
) -> Iterator[None]:
    """Record a final failure of the block for an optional subject; any other failure ends the stage.

    `live` is the model of the subject Live.
    """
    try:
        yield
    except StageFailure as failure:
        if subject not in OPTIONAL or failure.exit_code not in FINAL_CODES:
            raise
        logger.warning("%s is not measured: %s", subject, failure.message)
        champion = f"the champion {live.name}: " if subject == "Live" and live is not None else ""
        # Messages of PyTorch have many lines.
        message = " ".join(f"{champion}{failure.message}".split())
        unmeasured.append(UnmeasuredSubject(subject=subject, message=message[:MAX_MESSAGE_CHARACTERS]))


def page_scanner(store: Store, dataset: Digest) -> Scanner:
    """The scanner with the checks of the dataset; with the default ones if prepare recorded none.

    Raises StageFailure (ARTIFACT_CORRUPT, STORE_UNAVAILABLE), Preempted.
    """
    known = sensitive_hashes(store, dataset)
    return Scanner(Checks() if known is None else known.checks)


@dataclass(frozen=True)
class _Opened:
    """A Checkpoint and its tokenizer."""

    weights: Weights
    tokenizer: PreTrainedTokenizerBase
    stop_ids: frozenset[int]


class SubjectOpener:
    """Opens subjects by name; what they share is read once. Raises StageFailure, Preempted."""

    def __init__(
        self, config: EvaluateConfig, store: Store, data: Path, rows: Sequence[Row], folder: RunFolder
    ) -> None:
        """`data` is the dataset, `rows` the evaluated rows, and `folder` gets the prompt of Prompted."""
        self._config = config
        self._store = store
        self._data = data
        self._rows = rows
        self._folder = folder

    @cached_property
    def scope(self) -> MetricScope:
        """What the metrics need in addition to answers, by the chat template of the evaluated Checkpoint."""
        config = self._config
        source = ScopeSource(self._data, config.split, self._tuned.tokenizer, config.chat_template_kwargs)
        return source.find(config.metrics, config.options)

    @cached_property
    def scanner(self) -> Scanner:
        """What is hidden in texts that people read."""
        return page_scanner(self._store, self._config.dataset)

    def open(self, subject: Subject) -> EvaluatedSubject:
        """Open a subject. Raises StageFailure, also for a subject that this release does not know."""
        openers: dict[Subject, Callable[[], EvaluatedSubject]] = {
            "Tuned": self._open_tuned,
            "Base": self._open_base,
            "Prompted": self._open_prompted,
            "Live": self._open_live,
        }
        return openers[subject]()

    def has_same_tokens(self, tokenizer: PreTrainedTokenizerBase) -> bool:
        """Return whether texts have the same tokens as for the evaluated Checkpoint."""
        tuned = self._tuned.tokenizer
        return tokenizer is tuned or tokenizer.get_vocab() == tuned.get_vocab()

    def _open_tuned(self) -> EvaluatedSubject:
        return self._subject("Tuned", self._tuned, self._tuned.weights, self._examples)

    def _open_base(self) -> EvaluatedSubject:
        return self._subject("Base", self._tuned, self._base, self._examples)

    def _open_prompted(self) -> EvaluatedSubject:
        examples = encode_prompted(
            self._config,
            read_rows(self._shown / SPLIT_FILES["train"]),
            self._rows,
            self._examples,
            tokenizer=self._tuned.tokenizer,
            choices=self.scope.choices,
            base=self._base.base,
            folder=self._folder,
            scanner=self.scanner,
        )
        return self._subject("Prompted", self._tuned, self._base, examples)

    @property
    def _shown(self) -> Path:
        """Folder of the dataset whose training rows Prompted shows."""
        digest = self._config.shown_dataset
        if digest is None:
            return self._data
        return self._store.artifact(ArtifactRef(kind="datasets", digest=digest), verify=True)

    def _open_live(self) -> EvaluatedSubject:
        live = self._config.live
        if live is None:
            raise StageFailure(FailureReason.INVALID_CONFIG, "the model line has no champion to compare with")
        opened = self._open(live.digest, live.type, live.base_model, quantized=live.quantized_base)
        examples = self._encode(opened, live.chat_template_kwargs)
        return self._subject("Live", opened, opened.weights, examples)

    def _subject(
        self, name: Subject, opened: _Opened, weights: Weights, examples: Sequence[Example]
    ) -> EvaluatedSubject:
        return EvaluatedSubject(name, weights, opened.tokenizer, examples, opened.stop_ids)

    @cached_property
    def _tuned(self) -> _Opened:
        config = self._config
        return self._open(
            config.checkpoint,
            config.checkpoint_type,
            config.base_model,
            quantized=config.quantized_base,
        )

    @cached_property
    def _examples(self) -> list[Example]:
        return self._encode(self._tuned, self._config.chat_template_kwargs)

    @property
    def _base(self) -> Weights:
        return Weights(self._model(self._config.base_model), quantized=self._config.quantized_base)

    def _open(
        self,
        checkpoint: Digest,
        type_: CheckpointType,
        base_model: Digest,
        *,
        quantized: bool,
    ) -> _Opened:
        folder = self._store.artifact(ArtifactRef(kind="checkpoints", digest=checkpoint), verify=True)
        is_whole = type_ == FULL_MODEL
        require_bundle(folder, f"Checkpoint {checkpoint}")
        tokenizer = load_tokenizer(folder if is_whole else self._model(base_model))
        # The model was trained with it. Another release may supply another one to the same base model.
        tokenizer.chat_template = read_chat_template(folder)
        weights = Weights(folder) if is_whole else Weights(self._model(base_model), folder, quantized)
        return _Opened(weights, tokenizer, read_stop_ids(folder))

    def _encode(self, opened: _Opened, chat_template_kwargs: TemplateArguments) -> list[Example]:
        return encode_examples(
            list(self._rows),
            opened.tokenizer,
            self._config.max_sequence_length,
            self._config.split,
            chat_template_kwargs,
            choices=self.scope.choices,
        )

    def _model(self, digest: Digest) -> Path:
        return self._store.artifact(ArtifactRef(kind="models", digest=digest))
