# SPDX-License-Identifier: Apache-2.0
"""Merging an adapter into its base model: what is written, and what refuses it."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from finetune_trainer.contract.references import ArtifactRef, Owner, StoreConfig
from finetune_trainer.contract.serving import (
    FetchConfig,
    FetchItem,
    MergeConfig,
    MergedWeights,
    ServeConfig,
    ServedModel,
)
from finetune_trainer.contract.vocabulary import ExitCode
from finetune_trainer.runtime.termination import StageFailure
from finetune_trainer.serve import loading, merge
from finetune_trainer.serve.fetch import run as fetch
from finetune_trainer.store import DerivedRef, Store, download_lock, open_store
from tests.trainer.processes import run
from tests.trainer.serve.models import make_llama

OWNER = Owner(kind="InferenceDeployment", namespace="team", name="routing", uid="0f0f")


class Published:
    """A store with a base model and its adapters, as a trainer publishes them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.place = StoreConfig(uri="pvc://artifacts", path=str(root / "store"))
        self.store: Store = open_store(self.place)
        make_llama(root)
        self.base = self._publish("models", root / "llama")
        self.adapters = {
            name: self._publish("checkpoints", root / f"llama-{name}") for name in ("tickets.v1", "letters")
        }

    def _publish(self, kind: Any, folder: Path) -> ArtifactRef:
        with self.store.staging() as staging:
            shutil.copytree(folder, staging, dirs_exist_ok=True)
            return ArtifactRef(kind=kind, digest=self.store.publish(kind, staging))

    def config(self, name: str) -> MergeConfig:
        return MergeConfig(
            owner=OWNER, store=self.place, checkpoint=self.adapters[name], base_model=self.base.digest
        )

    def folder(self, name: str, merged: MergedWeights) -> Path:
        return self.store.artifact(DerivedRef(self.adapters[name], merged.weights), verify=True)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Published:
    return Published(tmp_path_factory.mktemp("merge"))


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download_lock, "CONFIRM_SECONDS", 0.01)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(torch.arange(5, 25)[None]).logits.float()
    return found


@pytest.mark.parametrize("name", ["tickets.v1", "letters"])
def test_merged_weights_predict_what_peft_does_with_the_adapter(published: Published, name: str) -> None:
    merged = merge.run(published.config(name))

    base = AutoModelForCausalLM.from_pretrained(published.root / "llama", dtype=torch.float32)
    expected = logits(PeftModel.from_pretrained(base, str(published.root / f"llama-{name}")))
    folder = published.folder(name, merged)
    weights = load_file(folder / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    found = logits(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32))
    plain = logits(AutoModelForCausalLM.from_pretrained(published.root / "llama", dtype=torch.float32))
    assert (found - expected).abs().max() < 0.1 * (plain - expected).abs().max()


def test_an_adapter_is_merged_once(published: Published, monkeypatch: pytest.MonkeyPatch) -> None:
    first = merge.run(published.config("letters"))
    monkeypatch.setattr(merge, "load_base", None)

    ended = run(published.config("letters"))

    assert ended.code == ExitCode.OK
    assert MergedWeights.model_validate_json(ended.termination_message) == first
    assert merge.run(published.config("letters")) == first


def test_a_pod_serves_merged_weights_as_a_whole_model(published: Published, tmp_path: Path) -> None:
    merged = merge.run(published.config("letters"))
    item = FetchItem(
        artifact=published.adapters["letters"], merged=merged.weights, probe=merged.probe, folder="letters"
    )
    fetch(FetchConfig(owner=OWNER, store=published.place, items=(item,), destination=str(tmp_path)))

    served = loading.load(
        ServeConfig(
            owner=OWNER,
            base_folder="letters",
            models=(ServedModel(name="letters", folder="letters", type="Full"),),
            models_path=str(tmp_path),
        )
    )

    assert not isinstance(served.model, PeftModel)
    assert set(served.adapters) == {"letters"}


def test_the_merged_weights_are_removed_with_the_checkpoint(tmp_path: Path) -> None:
    published = Published(tmp_path)
    merged = merge.run(published.config("tickets.v1"))
    published.store.delete(published.adapters["tickets.v1"])

    assert not published.store.has(DerivedRef(published.adapters["tickets.v1"], merged.weights))


def test_weights_that_differ_from_the_record_of_the_adapter_are_refused(tmp_path: Path) -> None:
    published = Published(tmp_path)
    other = merge.run(published.config("letters"))
    record = published.store.artifact(DerivedRef(published.adapters["letters"], other.probe))
    with published.store.staging() as staging:
        shutil.copytree(record, staging, dirs_exist_ok=True)
        (staging / "manifest.json").unlink()
        probe = published.store.publish(published.adapters["tickets.v1"], staging)

    with pytest.raises(StageFailure, match="do not predict what was recorded when they were published"):
        merge.run(published.config("tickets.v1").model_copy(update={"probe": probe}))
    assert published.store.derived(published.adapters["tickets.v1"], merge.WEIGHTS) is None


def test_a_damaged_adapter_is_named(tmp_path: Path) -> None:
    published = Published(tmp_path)
    file = published.store.artifact(published.adapters["letters"]) / "adapter_model.safetensors"
    weights = load_file(file)
    save_file({name: tensor * 2 for name, tensor in weights.items()}, file)

    ended = run(published.config("letters"))

    assert ended.code == ExitCode.BAD_CONFIG
    assert "adapter_model.safetensors was changed or damaged" in ended.termination_message
