# SPDX-License-Identifier: Apache-2.0
"""The base model: its files, its digest, and models that are rejected."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from finetune_trainer.contract.method import LoRA, Method
from finetune_trainer.contract.references import ArtifactRef
from finetune_trainer.contract.vocabulary import ExitCode, FailureReason
from finetune_trainer.model.loading import load_base
from finetune_trainer.preflight import stage
from finetune_trainer.runtime.signals import Stop
from finetune_trainer.runtime.termination import Preempted
from tests.trainer.workbench import URI, Sheet, Workbench
from tools.models import tiny

Change = Callable[[Path], object]


@pytest.fixture
def bench(tmp_path: Path) -> Workbench:
    return Workbench(tmp_path)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny(), tmp_path / "source"))


def test_the_base_model_is_in_the_store_under_its_digest(bench: Workbench) -> None:
    result = bench.preflight()

    folder = bench.store.artifact(ArtifactRef(kind="models", digest=result.base_model), verify=True)
    assert {path.name for path in folder.iterdir()} == {path.name for path in tiny().iterdir()} | {
        "manifest.json"
    }
    assert load_base(folder, None, torch.device("cpu")).config.model_type == "llama"
    assert result.chat_template == "model"


def test_a_model_that_the_store_has_is_not_copied_again(bench: Workbench, source: Path) -> None:
    first = bench.preflight(source)
    folder = bench.store.artifact(ArtifactRef(kind="models", digest=first.base_model))
    before = (folder / "model.safetensors").stat()

    assert bench.preflight(source).base_model == first.base_model
    assert (folder / "model.safetensors").stat() == before


def test_only_files_of_the_model_are_copied(bench: Workbench, source: Path) -> None:
    alone = bench.preflight(source).base_model
    (source / "optimizer.pt").write_bytes(b"pickle")
    (source / "pytorch_model.bin").write_bytes(b"pickle")
    (source / "onnx").mkdir()
    (source / "onnx" / "model.onnx").write_bytes(b"onnx")

    assert bench.preflight(source).base_model == alone


def test_the_license_travels_with_the_weights(bench: Workbench, source: Path) -> None:
    (source / "LICENSE.txt").write_text("terms")

    digest = bench.preflight(source).base_model

    folder = bench.store.artifact(ArtifactRef(kind="models", digest=digest))
    assert (folder / "LICENSE.txt").read_text() == "terms"


PROCESSOR = ("preprocessor_config.json", "processor_config.json")


def test_the_files_with_which_engines_read_images_travel_with_the_weights(
    bench: Workbench, source: Path
) -> None:
    for name in PROCESSOR:
        (source / name).write_text("{}")

    base = bench.preflight(source).base_model

    assert {*PROCESSOR} < names_in_store(bench, base)
    full = bench.train(bench.train_config(base, method=Method(type="Full"))).checkpoints[0]
    assert {*PROCESSOR} < {path.name for path in bench.checkpoint(full).iterdir()}


def names_in_store(bench: Workbench, base_model: str) -> set[str]:
    folder = bench.store.artifact(ArtifactRef(kind="models", digest=base_model), verify=True)
    return {path.name for path in folder.iterdir()}


def test_the_digest_that_the_user_named_is_confirmed(bench: Workbench) -> None:
    digest = bench.preflight().base_model

    assert bench.preflight(base_model_digest=digest).base_model == digest


def test_a_digest_other_than_the_named_one_is_rejected(bench: Workbench) -> None:
    named = f"sha256:{'0' * 64}"

    failure = bench.preflight_failure(base_model_digest=named)

    assert failure.reason == FailureReason.BASE_MODEL_DIGEST_MISMATCH
    assert failure.exit_code == ExitCode.BAD_CONFIG
    assert named in failure.message
    actual = bench.preflight().base_model
    assert actual in failure.message
    assert bench.store.has(ArtifactRef(kind="models", digest=actual))


def test_a_missing_folder_is_named(bench: Workbench) -> None:
    failure = bench.preflight_failure(bench.root / "absent")

    assert failure.reason == FailureReason.BASE_MODEL_NOT_FOUND
    assert URI in failure.message


def _pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _gguf(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-q4.gguf")


def _adapter(folder: Path) -> None:
    (folder / "config.json").rename(folder / "adapter_config.json")


def _truncated(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def _without_shard(folder: Path) -> None:
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _configured(**fields: object) -> Change:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | fields))

    return change


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (_pickled, "pickled (pytorch_model.bin)"),
        (_gguf, "GGUF"),
        (_adapter, "this is an adapter"),
        (_truncated, "model.safetensors is damaged"),
        (_without_shard, "model-00001-of-00002.safetensors"),
        (lambda folder: (folder / "model.safetensors").unlink(), "no weights"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer.json is missing"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json"),
        (_configured(model_type="own", auto_map={"AutoModelForCausalLM": "own.Model"}), "config.json"),
        (_configured(architectures=["LlamaForSequenceClassification"]), "LlamaForSequenceClassification"),
        (_configured(quantization_config={"quant_method": "gptq", "bits": 4}), "quantized"),
    ],
)
def test_a_model_that_cannot_be_trained_is_rejected_with_the_reason(
    bench: Workbench, source: Path, change: Change, complaint: str
) -> None:
    change(source)

    failure = bench.preflight_failure(source)

    assert failure.reason == FailureReason.BASE_MODEL_INVALID
    assert failure.exit_code == ExitCode.BAD_CONFIG
    assert complaint in failure.message
    assert URI in failure.message


@pytest.mark.parametrize("target", ["q_prj", "lm_head"])
def test_an_unknown_adapter_target_is_rejected_with_the_known_ones(bench: Workbench, target: str) -> None:
    failure = bench.preflight_failure(method=Method(lora=LoRA(target_modules=("v_proj", target))))

    assert failure.reason == FailureReason.INVALID_CONFIG
    assert f"no linear layer {target} " in failure.message
    assert "gate_proj, k_proj" in failure.message


def test_a_step_is_shared_among_the_processes_of_all_nodes(bench: Workbench) -> None:
    hyperparameters = bench.preflight(nodes=2, devices=2).hyperparameters

    assert hyperparameters.processes == 4
    assert (hyperparameters.batch_size, hyperparameters.max_batch_rows) == (8, 2)


def test_a_signal_ends_it_before_the_copy(bench: Workbench) -> None:
    stop = Stop()
    stop.set()

    with pytest.raises(Preempted):
        stage.run(bench.preflight_config(tiny(), bench.dataset()), bench.context(Sheet(stop=stop)))


@pytest.mark.parametrize("stored", [False, True])
def test_progress_ends_at_the_total(bench: Workbench, *, stored: bool) -> None:
    if stored:
        bench.preflight()
    sheet = Sheet()

    stage.run(bench.preflight_config(tiny(), bench.dataset()), bench.context(sheet))

    assert sheet.seen[-1].step == sheet.seen[-1].total_steps > 0
