# SPDX-License-Identifier: Apache-2.0
"""An adapter is fetched for serving only beside the base model that it was trained from."""

import json
from pathlib import Path

import pytest

from finetune_trainer.contract.references import ArtifactRef, Owner, StoreConfig
from finetune_trainer.contract.serving import FetchConfig, FetchItem
from finetune_trainer.contract.vocabulary import ExitCode
from finetune_trainer.store import open_store
from tests.trainer.processes import Ended, run

OTHER = "sha256:" + "0" * 64
GENERATION = "generation_config.json"


class Place:
    """A store with a base model in it."""

    def __init__(self, folder: Path) -> None:
        self.config = StoreConfig(uri="pvc://artifacts", path=str(folder / "store"))
        self.store = open_store(self.config)
        self.destination = folder / "models"
        self.base = self._publish("models", {"config.json": json.dumps({"model_type": "llama"})})

    def adapter(self, **config: str) -> ArtifactRef:
        files = {"adapter_config.json": json.dumps(config), "chat_template.jinja": "", GENERATION: "{}"}
        return self._publish("checkpoints", files)

    def fetch(self, adapter: ArtifactRef) -> Ended:
        items = (FetchItem(artifact=self.base, folder="base"), FetchItem(artifact=adapter, folder="tickets"))
        owner = Owner(kind="InferenceDeployment", namespace="team", name="routing", uid="0f0f")
        return run(
            FetchConfig(owner=owner, store=self.config, items=items, destination=str(self.destination))
        )

    def _publish(self, kind: str, files: dict[str, str]) -> ArtifactRef:
        with self.store.staging() as staging:
            for name, content in files.items():
                (staging / name).write_text(content)
            digest = self.store.publish(kind, staging)  # type: ignore[arg-type]  # one of the kinds
        return ArtifactRef(kind=kind, digest=digest)  # type: ignore[arg-type]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_an_adapter_of_another_base_model_stops_the_pod_with_both_digests(place: Place) -> None:
    ended = place.fetch(place.adapter(base_model_name_or_path=OTHER))
    assert ended.code == ExitCode.BAD_CONFIG
    assert ended.termination_message.startswith("BaseModelMismatch: ")
    assert OTHER in ended.termination_message
    assert place.base.digest in ended.termination_message


def test_an_adapter_of_this_base_model_is_fetched(place: Place) -> None:
    ended = place.fetch(place.adapter(base_model_name_or_path=place.base.digest))
    assert ended.code == ExitCode.OK


def test_an_adapter_that_names_its_base_model_by_a_name_is_not_judged(place: Place) -> None:
    ended = place.fetch(place.adapter(base_model_name_or_path="google/gemma-3-270m"))
    assert ended.code == ExitCode.OK
