# SPDX-License-Identifier: Apache-2.0
"""A base model that an endpoint serves alone: its way into the store, and from there into a pod."""

from pathlib import Path
from typing import Any

import pytest

from finetune_trainer.contract.references import ArtifactRef, Owner
from finetune_trainer.contract.serving import (
    DownloadConfig,
    FetchConfig,
    FetchItem,
    ServeConfig,
    ServedModel,
    StoredModel,
)
from finetune_trainer.contract.vocabulary import ExitCode, FailureReason
from finetune_trainer.preflight import base_model
from finetune_trainer.runtime.termination import StageFailure
from finetune_trainer.serve import fetch
from finetune_trainer.serve.loading import load
from finetune_trainer.serve.served_models import served_names
from tests.trainer.processes import run
from tests.trainer.workbench import URI, Workbench
from tools.models import tiny

ENDPOINT = Owner(kind="InferenceDeployment", namespace="team", name="assistant", uid="0f0f")


@pytest.fixture
def bench(tmp_path: Path) -> Workbench:
    return Workbench(tmp_path)


def config(bench: Workbench, **fields: Any) -> DownloadConfig:
    source = {"base_model_uri": URI, "base_model_path": str(tiny())}
    return DownloadConfig(owner=ENDPOINT, run=ENDPOINT.uid, store=bench.store_config, **{**source, **fields})


def test_the_model_is_in_the_store_under_the_digest_that_a_run_gives_it(bench: Workbench) -> None:
    ended = run(config(bench))

    assert ended.code == ExitCode.OK
    found = StoredModel.model_validate_json(ended.termination_message)
    assert found.digest == bench.preflight().base_model


def test_a_model_of_the_required_digest_that_the_store_has_is_not_read_again(bench: Workbench) -> None:
    digest = base_model.download_to_store(config(bench)).digest

    again = config(bench, base_model_path="/nowhere", base_model_digest=digest)

    assert base_model.download_to_store(again).digest == digest


def test_files_of_another_digest_are_refused(bench: Workbench) -> None:
    with pytest.raises(StageFailure, match=r"but spec\.baseModel\.digest requires sha256:a") as caught:
        base_model.download_to_store(config(bench, base_model_digest="sha256:" + "a" * 64))

    assert caught.value.reason is FailureReason.BASE_MODEL_DIGEST_MISMATCH


def test_a_missing_folder_is_named(bench: Workbench) -> None:
    with pytest.raises(StageFailure, match=f"baseModel {URI}: the folder does not exist") as caught:
        base_model.download_to_store(config(bench, base_model_path=str(tiny() / "none")))

    assert caught.value.reason is FailureReason.BASE_MODEL_NOT_FOUND


@pytest.mark.parametrize("name", ["assistant", "base"])
def test_a_pod_loads_the_base_model_under_the_name_of_the_endpoint(
    bench: Workbench, tmp_path: Path, name: str
) -> None:
    digest = base_model.download_to_store(config(bench)).digest
    models = tmp_path / "models"
    item = FetchItem(artifact=ArtifactRef(kind="models", digest=digest), folder=name)
    fetch.run(FetchConfig(owner=ENDPOINT, store=bench.store_config, items=(item,), destination=str(models)))

    served = ServeConfig(
        owner=ENDPOINT,
        base_folder=name,
        models=(ServedModel(name=name, folder=name, type="Full"),),
        models_path=str(models),
    )

    assert served_names(served) == (name,)
    assert set(load(served).adapters) == {name}
