# SPDX-License-Identifier: Apache-2.0
"""A serving pod of vLLM with a DoRA Checkpoint, which vLLM cannot load, merged and in the model cache."""

from pathlib import Path

import pytest

from finetune_trainer.contract.references import ArtifactRef, StoreConfig
from finetune_trainer.contract.serving import FetchConfig, FetchItem, FillConfig, MergeConfig
from finetune_trainer.serve.fetch import fill_cache as fill
from finetune_trainer.serve.fetch import run as fetch
from finetune_trainer.serve.merge import run as merge
from tests.peers.test_vllm_pod import QUESTION, FetchedPod, config_of_router
from tests.trainer.basemodels import with_gemma_tokens
from tests.trainer.workbench import OWNER, ROWS, Workbench
from tools.peers import vllm

pytestmark = pytest.mark.skipif(not vllm.is_installed(), reason="make test-peers installs vLLM for CPUs")


def test_a_merged_dora_checkpoint_answers_as_trained_from_the_model_cache(tmp_path: Path) -> None:
    bench, cache = Workbench(tmp_path), StoreConfig(uri="pvc://cache", path=str(tmp_path / "cache"))
    Path(cache.path).mkdir()
    base = bench.model(with_gemma_tokens(tmp_path / "source"))
    checkpoint = bench.train(config_of_router(bench, base, dora=True)).checkpoints[-1]
    adapter, store = ArtifactRef(kind="checkpoints", digest=checkpoint.digest), bench.store_config
    merged = merge(
        MergeConfig(owner=OWNER, store=store, checkpoint=adapter, base_model=base, probe=checkpoint.probe)
    )
    fill(FillConfig(owner=OWNER, store=store, cache=cache, artifact=adapter, merged=merged.weights))
    pod = FetchedPod(tmp_path, is_whole=True)
    item = FetchItem(
        artifact=adapter, folder="router", probe=merged.probe, merged=merged.weights, in_cache=True
    )
    fetch(
        FetchConfig(
            owner=OWNER,
            store=store,
            items=(item,),
            destination=str(pod.models),
            cache=cache,
            engine="VLLM",
        )
    )

    assert (pod.models / "router").resolve().is_relative_to(cache.path)
    with pod.server() as server:
        (choice,) = server.chat("router", QUESTION).choices
        assert (choice.finish_reason, choice.message.content) == ("stop", ROWS[0].output)
        assert {model.id for model in server.openai.models.list()} == {"router"}
        assert "router differs from its probe by up to" in server.whole_log
