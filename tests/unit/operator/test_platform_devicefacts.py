# SPDX-License-Identifier: Apache-2.0
"""Facts about a profile's devices: given, from the node label, or from the table of known cards."""

import re
from pathlib import Path
from typing import Any

import pytest

from finetune_operator.api.compute_profile import ComputeProfile
from finetune_operator.reconcile.platform.profiles import device_facts, host_memory_bytes
from finetune_trainer.contract.accelerators import CARDS, GIBIBYTE, find_card
from tests.unit.operator.runobjects import profile

L4 = ("NVIDIA-L4", 22 * GIBIBYTE, 121.0)


@pytest.mark.parametrize(
    ("accelerator", "label", "facts"),
    [
        ({}, "NVIDIA-L4", L4),
        ({"product": "nvidia-l4"}, None, ("nvidia-l4", *L4[1:])),
        ({"product": "NVIDIA-L4"}, "NVIDIA-T1", L4),
        ({"memory": "10Gi"}, None, (None, 10 * GIBIBYTE, None)),
        ({"product": "NVIDIA-L4", "memory": "12Gi"}, None, ("NVIDIA-L4", 12 * GIBIBYTE, 121.0)),
        ({"peakTeraflops": 90.5}, None, (None, None, 90.5)),
        ({}, "NVIDIA-A100-SXM4-40GB-MIG-1g.5gb", ("NVIDIA-A100-SXM4-40GB-MIG-1g.5gb", None, None)),
        ({}, None, None),
        ({"resource": "cpu"}, "NVIDIA-L4", None),
    ],
)
def test_facts_come_from_the_profile_the_node_label_and_the_table(
    accelerator: dict[str, Any], label: str | None, facts: tuple[Any, ...] | None
) -> None:
    of_train = {"stages": ["train"], "nodeSelector": {"nvidia.com/gpu.product": label}}
    of_others = {"stages": ["cpu", "serve"], "nodeSelector": {"nvidia.com/gpu.product": "NVIDIA-T4"}}
    spec: dict[str, Any] = {
        "accelerator": {"resource": "nvidia.com/gpu", **accelerator},
        "pods": [of_others, *([of_train] if label else [])],
    }
    found = device_facts(ComputeProfile.model_validate(profile(**spec)))
    assert (None if found is None else (found.product, found.memory_bytes, found.peak_teraflops)) == facts


@pytest.mark.parametrize(
    ("resource", "stages", "expected"),
    [("cpu", ["train"], 6 << 30), ("cpu", ["serve"], None), ("nvidia.com/gpu", ["train"], None)],
)
def test_the_memory_of_train_pods_counts_where_their_devices_are_cpu_cores(
    resource: str, stages: list[str], expected: int | None
) -> None:
    pods = [{"stages": stages, "resources": {"cpu": "1", "memory": "6Gi"}}]
    found = ComputeProfile.model_validate(profile(accelerator={"resource": resource}, pods=pods))
    assert host_memory_bytes(found) == expected


@pytest.mark.parametrize("product", CARDS)
def test_the_table_has_plausible_figures(product: str) -> None:
    card = find_card(product.upper())
    assert card is CARDS[product]
    assert 10 <= card.memory_gib <= 300
    # No data sheet of today has a dense peak beyond that: 4500 is that of sparse matrices.
    assert 50 <= card.peak_teraflops <= 2600


def test_the_page_on_devices_lists_the_known_cards() -> None:
    page = (Path(__file__).parents[3] / "docs" / "devices.md").read_text()
    listed = page.partition("\nKnown are,")[2].partition(".\n")[0]
    assert re.findall(r"`([^`]+)`", listed) == list(CARDS)
