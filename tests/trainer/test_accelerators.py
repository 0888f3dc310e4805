# SPDX-License-Identifier: Apache-2.0
"""Stages that were given accelerators refuse an image or a node without them before any work."""

from pathlib import Path

import pytest
import torch

from finetune_trainer.contract.accelerators import CARDS, DeviceFacts
from finetune_trainer.contract.configs import EvaluateConfig
from finetune_trainer.contract.references import StoreConfig
from finetune_trainer.contract.vocabulary import ExitCode, FailureReason
from finetune_trainer.model.device import (
    MIN_CUBLAS_BYTES,
    check_accelerators,
    check_card,
    has_gpu_libraries,
)
from finetune_trainer.runtime.termination import StageFailure
from tests.trainer.preparing import OWNER, RUN
from tests.trainer.processes import run

DIGEST = "sha256:" + "a" * 64


@pytest.fixture
def built_for_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.2")


def packages(folder: Path, size: int) -> Path:
    """A folder of packages with a libcublas of this size."""
    library = folder / "nvidia" / "cu13" / "lib" / "libcublas.so.13"
    library.parent.mkdir(parents=True)
    with library.open("wb") as file:
        file.truncate(size)
    return folder


@pytest.mark.usefixtures("built_for_cuda")
@pytest.mark.parametrize(("size", "expected"), [(81_072, False), (MIN_CUBLAS_BYTES, True)])
def test_stubs_of_cuda_are_no_gpu_libraries(tmp_path: Path, size: int, expected: bool) -> None:
    assert has_gpu_libraries(packages(tmp_path, size)) is expected


@pytest.mark.usefixtures("built_for_cuda")
def test_libraries_of_the_system_are_gpu_libraries(tmp_path: Path) -> None:
    assert has_gpu_libraries(tmp_path)


def test_a_torch_for_cpus_has_no_gpu_libraries(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.version, "hip", None)
    assert not has_gpu_libraries(packages(tmp_path, MIN_CUBLAS_BYTES))
    check_accelerators(0)
    with pytest.raises(StageFailure, match="make images VARIANT=cuda") as caught:
        check_accelerators(2)
    assert (caught.value.reason, caught.value.exit_code) == (FailureReason.WRONG_IMAGE, ExitCode.BAD_CONFIG)


@pytest.mark.usefixtures("built_for_cuda")
@pytest.mark.parametrize(("visible", "requested", "fails"), [(0, 1, True), (1, 2, True), (2, 2, False)])
def test_a_pod_that_sees_fewer_devices_than_it_requests_names_the_node(
    monkeypatch: pytest.MonkeyPatch, visible: int, requested: int, fails: bool
) -> None:
    monkeypatch.setattr("finetune_trainer.model.device.has_gpu_libraries", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: visible > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA L4")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 9))
    if not fails:
        check_accelerators(requested)
        return
    with pytest.raises(StageFailure, match=f"finds {visible}: check that nvidia-smi") as caught:
        check_accelerators(requested)
    assert caught.value.reason is FailureReason.DEVICE_NOT_FOUND
    assert caught.value.exit_code is ExitCode.INTERNAL


@pytest.mark.usefixtures("built_for_cuda")
def test_a_card_without_bfloat16_fails_at_once_with_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    cards = [("NVIDIA L4", (8, 9)), ("Tesla T4", (7, 5))]
    monkeypatch.setattr("finetune_trainer.model.device.has_gpu_libraries", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda number: cards[number][0])
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda number: cards[number][1])
    check_accelerators(1)
    with pytest.raises(StageFailure, match=r"Tesla T4 has the compute capability 7.5.*needs 8.0") as caught:
        check_accelerators(2)
    assert caught.value.reason is FailureReason.UNSUPPORTED_DEVICE
    assert caught.value.exit_code is ExitCode.BAD_CONFIG


@pytest.mark.parametrize("product", CARDS)
def test_the_table_refuses_the_cards_of_nvidia_before_ampere(product: str) -> None:
    facts = DeviceFacts(product=product.lower())
    if product.startswith("Tesla-"):
        with pytest.raises(StageFailure, match="kubectl get computeprofiles"):
            check_card(facts)
    else:
        check_card(facts)
    assert (CARDS[product].compute_capability is None) == product.startswith("AMD")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_stage_with_accelerators_ends_before_it_opens_the_store(tmp_path: Path) -> None:
    config = EvaluateConfig(
        owner=OWNER,
        run=RUN,
        store=StoreConfig(uri="pvc://artifacts", path=str(tmp_path / "store")),
        accelerators=1,
        base_model=DIGEST,
        dataset=DIGEST,
        checkpoint=DIGEST,
        checkpoint_type="Adapter",
        metrics=("loss",),
        max_sequence_length=16,
        seed=0,
    )
    ended = run(config)
    assert ended.code in (ExitCode.BAD_CONFIG, ExitCode.INTERNAL)
    assert ended.result.reason in ("WrongImage", "DeviceNotFound")
    assert not (tmp_path / "store").exists()
