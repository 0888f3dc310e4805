# SPDX-License-Identifier: Apache-2.0
"""Clients of an endpoint on a cluster, and copies of its weights that are wrong."""

import base64
import io
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import httpx
import httpx2
import openai
import torch
from safetensors.torch import load_file, save_file

from finetune_client.backend import Object
from finetune_operator.api.labels import REVISION
from finetune_trainer.contract.references import StoreConfig
from finetune_trainer.manifest import MANIFEST_NAME
from finetune_trainer.store import open_store
from tests.e2e.pods import Keeper
from tests.e2e.team import PATIENCE_SECONDS, PAUSE_SECONDS, Team, is_running
from tests.waiting import eventually

KEY: Final = "sk-0123456789abcdef"
Change = Callable[[Path], None]


class Answer(NamedTuple):
    """An answer, how it ended, and its number of tokens."""

    text: str
    end: str
    tokens: int


@dataclass(frozen=True)
class Served:
    """What clients of an endpoint see."""

    answers: dict[tuple[str, str], Answer]
    """By model and question."""
    models: set[str]
    """Lines of the metric with the served weights."""


def client_of(team: Team, name: str, key: str = KEY) -> openai.OpenAI:
    """A client that opens a connection for each request, and retries none."""
    address, port = team.access.service_address(team.namespace, name)
    settings: Any = {"trust_env": False, "timeout": 60, "limits": httpx2.Limits(max_keepalive_connections=0)}
    return openai.OpenAI(
        base_url=f"http://{address}:{port}/v1",
        api_key=key,
        max_retries=0,
        http_client=openai.DefaultHttpxClient(**settings),
    )


def answer(client: openai.OpenAI, model: str, question: str) -> Answer:
    """Ask for a greedy answer.

    The bytes of a character that is cut off are U+FFFD in the built-in engine, and vLLM leaves them out.
    """
    found = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": question}], temperature=0, max_tokens=16
    )
    (choice,) = found.choices
    assert found.usage is not None
    text = (choice.message.content or "").rstrip("\N{REPLACEMENT CHARACTER}")
    return Answer(text, choice.finish_reason, found.usage.completion_tokens)


def pod_of(team: Team, desk: Object) -> Object:
    """The running pod of the endpoint's revision."""
    revision = desk["status"]["revision"]
    return eventually(
        f"a pod of {revision} runs",
        lambda: next(filter(is_running, team.access.pods(team.namespace, f"{REVISION}={revision}")), None),
        PATIENCE_SECONDS,
        pause=PAUSE_SECONDS,
    )


def served(team: Team, desk: Object, metrics_port: int, questions: Sequence[str]) -> Served:
    """What the endpoint `desk` answers to questions, and what a scrape of its pod returns."""
    client = client_of(team, "desk")
    answers = {
        (model, question): answer(client, model, question)
        for model in ("base", "tuned")
        for question in questions
    }
    address = pod_of(team, desk)["status"]["podIP"]
    scraped = httpx.get(f"http://{address}:{metrics_port}/metrics", trust_env=False).text
    lines = {line for line in scraped.splitlines() if line.startswith("finetune_serve_model_info{")}
    return Served(answers, lines)


def without_effect(folder: Path) -> None:
    """Change an adapter so that it changes nothing."""
    path = folder / "adapter_model.safetensors"
    weights = load_file(path)
    save_file({k: torch.zeros_like(v) if "lora_B" in k else v for k, v in weights.items()}, path)


def with_another_digest(folder: Path) -> None:
    """Add a file that nothing reads."""
    (folder / "README.md").write_text("A folder with another digest.")


@dataclass(frozen=True)
class PublishedCopies:
    """Changed copies of a Checkpoint's weights in the store of its team, to be pinned by uri."""

    keeper: Keeper
    digest: str
    scratch: Path

    def copy(self, change: Change) -> str:
        """Publish a changed copy. Returns its digest."""
        folder = f"/store/checkpoints/{self.digest.removeprefix('sha256:')}"
        content = base64.b64decode(self.keeper.run(f"tar -C {folder} -c . | base64"))
        store = open_store(StoreConfig(uri="pvc://artifacts", path=str(self.scratch)))
        with store.staging() as staging:
            with tarfile.open(fileobj=io.BytesIO(content)) as archive:
                archive.extractall(staging, filter="data")
            (staging / MANIFEST_NAME).unlink()
            change(staging)
            found = store.publish("checkpoints", staging)
        name = found.removeprefix("sha256:")
        self.keeper.copy(self.scratch / "checkpoints" / name, f"/store/checkpoints/{name}")
        return found
