# SPDX-License-Identifier: Apache-2.0
"""A source, a store, and runs of the stage `prepare` on them."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from finetune_trainer.contract.configs import PrepareConfig, SourceConfig
from finetune_trainer.contract.references import ArtifactRef, Owner, StoreConfig
from finetune_trainer.contract.results import PrepareResult
from finetune_trainer.prepare import stage
from finetune_trainer.runtime.progress import Reporter
from finetune_trainer.runtime.signals import Stop
from finetune_trainer.runtime.termination import StageFailure
from finetune_trainer.stage.context import StageContext
from finetune_trainer.store import Store, open_store

OWNER = Owner(kind="Dataset", namespace="team", name="tickets", uid="0f0f")
RUN = "0f0f-1"
OF_SOURCE = ("format", "columns", "splits", "known_version")
"""Settings of one source."""


@dataclass(frozen=True)
class Preparation:
    """Source and store of one test, and runs of `prepare` on them."""

    root: Path

    @property
    def store(self) -> Store:
        return open_store(self.store_config)

    @property
    def store_config(self) -> StoreConfig:
        return StoreConfig(uri="pvc://artifacts", path=str(self.root / "store"))

    def write(self, name: str, content: str | bytes) -> Path:
        path = self.root / "source" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def source(self, path: Path, **settings: Any) -> SourceConfig:
        return SourceConfig(uri=f"configmap://rows/{path.name}", path=str(path), **settings)

    def config(self, *sources: Path | SourceConfig, **settings: Any) -> PrepareConfig:
        """The config for these sources; settings of one source are those of each path."""
        of_source = {name: settings.pop(name) for name in OF_SOURCE if name in settings}
        return PrepareConfig(
            owner=OWNER,
            run=RUN,
            store=self.store_config,
            sources=tuple(
                each if isinstance(each, SourceConfig) else self.source(each, **of_source) for each in sources
            ),
            **settings,
        )

    def run(self, *sources: Path | SourceConfig, **settings: Any) -> PrepareResult:
        reporter = Reporter(None, OWNER, "prepare")
        context = StageContext(store=self.store, reporter=reporter, stop=Stop())
        return stage.run(self.config(*sources, **settings), context)

    def failure(self, *sources: Path | SourceConfig, **settings: Any) -> StageFailure:
        with pytest.raises(StageFailure) as caught:
            self.run(*sources, **settings)
        return caught.value

    def problems(self, *sources: Path | SourceConfig, **settings: Any) -> list[str]:
        """The problems in the result of a failure."""
        result = self.failure(*sources, **settings).prepare
        assert result is not None
        return list(result.problems)

    def rows(self, result: PrepareResult, split: str) -> list[dict[str, Any]]:
        assert result.dataset is not None
        folder = self.store.artifact(ArtifactRef(kind="datasets", digest=result.dataset), verify=True)
        return [json.loads(line) for line in (folder / f"{split}.jsonl").read_text().splitlines()]

    def all_rows(self, result: PrepareResult) -> list[dict[str, Any]]:
        return [row for split in ("train", "validation", "test") for row in self.rows(result, split)]


def json_lines(rows: Iterable[Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def pairs(count: int) -> list[dict[str, str]]:
    return [{"prompt": f"question {number}", "completion": f"answer {number}"} for number in range(count)]


def chat(*turns: str, roles: tuple[str, ...] = ("user", "assistant")) -> dict[str, Any]:
    return {
        "messages": [
            {"role": roles[index % len(roles)], "content": content} for index, content in enumerate(turns)
        ]
    }
