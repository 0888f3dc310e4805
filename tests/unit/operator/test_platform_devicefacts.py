# SPDX-License-Identifier: Apache-2.0
"""Facts about a profile's devices: given, from the node label, or from the table of known cards."""

import re
from pathlib import Path
from typing import Any

import pytest

from finetune_operator.api.computeprofile import ComputeProfile
from finetune_operator.reconcile.platform.devicefacts import device_facts
from finetune_trainer.contract.devicecards import CARDS, GIBIBYTE, find_card
from tests.unit.operator.runobjects import profile

L4 = ("NVIDIA-L4", 22 * GIBIBYTE, 121.0)


@pytest.mark.parametrize(
    ("spec", "facts"),
    [
        ({"device": {"product": "NVIDIA-L4"}}, L4),
        ({"device": {"product": "nvidia-l4"}}, ("nvidia-l4", *L4[1:])),
        ({"nodeSelector": {"nvidia.com/gpu.product": "NVIDIA-L4"}}, L4),
        ({"nodeSelector": {"nvidia.com/gpu.product": "NVIDIA-T1"}, "device": {"product": "NVIDIA-L4"}}, L4),
        ({"device": {"memory": "10Gi"}}, (None, 10 * GIBIBYTE, None)),
        ({"device": {"product": "NVIDIA-L4", "memory": "12Gi"}}, ("NVIDIA-L4", 12 * GIBIBYTE, 121.0)),
        ({"device": {"peakTeraflops": 90.5}}, (None, None, 90.5)),
        ({"nodeSelector": {"nvidia.com/gpu.product": "NVIDIA-A100-SXM4-40GB-MIG-1g.5gb"}},
         ("NVIDIA-A100-SXM4-40GB-MIG-1g.5gb", None, None)),
        ({}, None),
        ({"devices": {"resource": "cpu"}, "nodeSelector": {"nvidia.com/gpu.product": "NVIDIA-L4"}}, None),
    ],
)  # fmt: skip
def test_facts_come_from_the_profile_the_node_label_and_the_table(
    spec: dict[str, Any], facts: tuple[Any, ...] | None
) -> None:
    gpu = {"devices": {"resource": "nvidia.com/gpu"}}
    found = device_facts(ComputeProfile.model_validate(profile(**{**gpu, **spec})))
    assert (None if found is None else (found.product, found.memory_bytes, found.peak_teraflops)) == facts


@pytest.mark.parametrize("product", CARDS)
def test_the_table_has_plausible_figures(product: str) -> None:
    card = find_card(product.upper())
    assert card is CARDS[product]
    assert 10 <= card.memory_gib <= 300
    # No data sheet of today has a dense peak beyond that: 4500 is that of sparse matrices.
    assert 50 <= card.peak_teraflops <= 2600


def test_the_page_on_training_lists_the_known_cards() -> None:
    page = (Path(__file__).parents[3] / "docs" / "training.md").read_text()
    listed = page.partition("\nKnown are,")[2].partition(".\n")[0]
    assert re.findall(r"`([^`]+)`", listed) == list(CARDS)
