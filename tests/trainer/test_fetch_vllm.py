# SPDX-License-Identifier: Apache-2.0
"""The files that the init container of a vLLM pod makes in addition to the models."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest

from finetune_trainer.contract.base import Digest
from finetune_trainer.contract.environment import (
    MODELS_MOUNT,
    VLLM_CHAT_TEMPLATE,
    VLLM_GENERATION_CONFIG,
    VLLM_MIDDLEWARE,
    VLLM_PYTHONPATH,
)
from finetune_trainer.contract.references import ArtifactRef
from finetune_trainer.contract.serving import FetchConfig, FetchItem
from finetune_trainer.contract.vocabulary import ExitCode, FailureReason
from finetune_trainer.runtime.termination import StageFailure
from finetune_trainer.serve.fetch import run as fetch
from finetune_trainer.serve.served_models import probe_folder
from tests.trainer.basemodels import whole, with_gemma_tokens
from tests.trainer.processes import run
from tests.trainer.workbench import OWNER, Workbench

TEMPLATE: Final = "{% for message in messages %}{{ message.content }}</s>{% endfor %}"
PROBE: Final = '{"format": 1}'


class Pod:
    """A base model, published adapters, and the folders that a pod fetches them to."""

    def __init__(self, folder: Path) -> None:
        self.bench = Workbench(folder)
        self.models = folder / "models"
        self._source = folder / "source"

    def base(self, **generation: Any) -> FetchItem:
        """A base model without template; `generation` changes its generation config."""
        path = with_gemma_tokens(self._source) / "generation_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | generation))
        return self._item("base", "models", self.bench.model(self._source))

    def without_stop_tokens(self) -> FetchItem:
        """A base model that configures no token that ends an answer."""
        whole(self._source)
        (self._source / "generation_config.json").unlink()
        (self._source / "tokenizer_config.json").write_text("{}")
        return self._item("base", "models", self.bench.model(self._source))

    def full(self) -> FetchItem:
        whole(self._source)
        with self.bench.store.staging() as staging:
            for file in self._source.iterdir():
                (staging / file.name).write_bytes(file.read_bytes())
            return self._item("tuned", "checkpoints", self.bench.store.publish("checkpoints", staging))

    def adapter(self, name: str, template: str | None = TEMPLATE, *stop_ids: int, **config: Any) -> FetchItem:
        with self.bench.store.staging() as staging:
            (staging / "adapter_config.json").write_text(json.dumps({"r": 8, "name": name, **config}))
            if template is not None:
                (staging / "chat_template.jinja").write_text(template)
                (staging / "generation_config.json").write_text(json.dumps({"eos_token_id": list(stop_ids)}))
            return self._item(name, "checkpoints", self.bench.store.publish("checkpoints", staging))

    def config(self, *items: FetchItem) -> FetchConfig:
        return FetchConfig(
            owner=OWNER,
            store=self.bench.store_config,
            items=items,
            destination=str(self.models),
            engine="VLLM",
            max_lora_rank=16,
        )

    def here(self, path: str) -> Path:
        """A path of the pod."""
        return self.models / Path(path).relative_to(MODELS_MOUNT)

    def _item(self, folder: str, kind: Any, digest: Digest) -> FetchItem:
        return FetchItem(artifact=ArtifactRef(kind=kind, digest=digest), folder=folder)


@pytest.fixture
def pod(tmp_path: Path) -> Pod:
    return Pod(tmp_path)


def test_template_and_stop_tokens_are_those_of_the_adapters(pod: Pod) -> None:
    base = pod.base(eos_token_id=2, temperature=0.7)

    ended = run(pod.config(base, pod.adapter("router", TEMPLATE, 7), pod.adapter("labels", TEMPLATE, 9)))

    assert ended.code == ExitCode.OK, ended.termination_message
    assert pod.here(VLLM_CHAT_TEMPLATE).read_text() == TEMPLATE
    settings = json.loads((pod.here(VLLM_GENERATION_CONFIG) / "generation_config.json").read_text())
    assert settings == {"eos_token_id": [2, 7, 9]}


def test_adapters_with_different_templates_are_refused_by_name(pod: Pod) -> None:
    ended = run(pod.config(pod.base(), pod.adapter("router"), pod.adapter("labels", f"{TEMPLATE}\n")))

    assert ended.code == ExitCode.BAD_CONFIG
    assert ended.termination_message.startswith(
        "InvalidConfig: router and labels were trained with different"
    )


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ({"r": 32}, "has rank 32, and the server loads ranks up to 16"),
        ({"rank_pattern": {"q_proj": 64}}, "has rank 64, and the server loads ranks up to 16"),
        ({"use_dora": True}, "is DoRA"),
        ({"modules_to_save": ["lm_head"]}, "replaces whole modules: lm_head"),
        ({"bias": "lora_only"}, "has biases (lora_only)"),
    ],
    ids=str,
)
def test_an_adapter_that_vllm_cannot_load_is_refused_with_the_reason(
    pod: Pod, config: dict[str, Any], problem: str
) -> None:
    with pytest.raises(StageFailure) as caught:
        fetch(pod.config(pod.base(), pod.adapter("router", **config)))

    assert caught.value.reason == FailureReason.INVALID_CONFIG
    assert caught.value.message.startswith(f"the adapter router {problem}, so vLLM cannot load it.")


def test_an_adapter_without_a_chat_template_is_refused_by_name(pod: Pod) -> None:
    with pytest.raises(StageFailure) as caught:
        fetch(pod.config(pod.base(), pod.adapter("router", None)))

    assert caught.value.reason == FailureReason.ARTIFACT_CORRUPT
    assert caught.value.message.startswith("router has no chat_template.jinja")


def test_a_base_model_that_does_not_say_how_an_answer_ends_is_refused_by_name(pod: Pod) -> None:
    base = pod.without_stop_tokens()

    with pytest.raises(StageFailure) as caught:
        fetch(pod.config(base))

    assert caught.value.reason == FailureReason.BASE_MODEL_INVALID
    assert caught.value.message.startswith("base: the base model")


def test_a_whole_model_keeps_its_own_template_and_stop_tokens(pod: Pod) -> None:
    fetch(pod.config(pod.full()))

    own = pod.models / "tuned"
    assert pod.here(VLLM_CHAT_TEMPLATE).read_text() == (own / "chat_template.jinja").read_text()


def test_a_base_model_without_adapters_gets_the_supplied_template(pod: Pod) -> None:
    fetch(pod.config(pod.base()))

    assert "<start_of_turn>" in pod.here(VLLM_CHAT_TEMPLATE).read_text()


def test_the_record_of_a_probe_is_copied_and_verified(pod: Pod) -> None:
    adapter = pod.adapter("router")
    with pod.bench.store.staging() as staging:
        (staging / "probe.json").write_text(PROBE)
        probe = pod.bench.store.publish(adapter.artifact, staging)
    recorded = adapter.model_copy(update={"probe": probe})

    fetch(pod.config(pod.base(), recorded))

    assert (probe_folder(pod.models, "router") / "probe.json").read_text() == PROBE


def test_a_record_that_was_deleted_does_not_stop_the_pod(pod: Pod) -> None:
    recorded = pod.adapter("router").model_copy(update={"probe": "sha256:" + "0" * 64})

    fetch(pod.config(pod.base(), recorded))

    assert not probe_folder(pod.models, "router").exists()


def test_a_restarted_pod_writes_the_same_files(pod: Pod) -> None:
    config = pod.config(pod.base(), pod.adapter("router", TEMPLATE, 7))
    fetch(config)
    before = {path: path.read_bytes() for path in pod.models.rglob("*") if path.is_file()}

    fetch(config)

    assert {path: path.read_bytes() for path in pod.models.rglob("*") if path.is_file()} == before


def test_the_middleware_is_imported_from_the_copy(pod: Pod) -> None:
    fetch(pod.config(pod.base()))

    module, _, name = VLLM_MIDDLEWARE.rpartition(".")
    script = f"import {module} as module; print(module.__file__, module.{name}.__name__)"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={"PYTHONPATH": str(pod.here(VLLM_PYTHONPATH))},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == [
        str(pod.here(VLLM_PYTHONPATH) / "finetune_trainer" / "serve" / "vllm" / "middleware.py"),
        name,
    ]
