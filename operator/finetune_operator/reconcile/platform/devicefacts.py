# SPDX-License-Identifier: Apache-2.0
"""What is known about one device of a ComputeProfile."""

from finetune_operator.api.compute_profile import ComputeProfile
from finetune_operator.api.pod_resources import CPU, quantity_value
from finetune_operator.stage_table import TRAIN_PODS
from finetune_trainer.contract.prediction import PRODUCT_LABELS, DeviceFacts, find_card


def device_facts(profile: ComputeProfile) -> DeviceFacts | None:
    """Facts of `spec.accelerator`, completed by the table of known cards; None if nothing is known.

    Without a product in `spec.accelerator`, the nodes' label that train pods require names it.
    """
    given = profile.spec.accelerator
    if given.resource == CPU:
        return None
    selector = profile.spec.pods_of(TRAIN_PODS).node_selector
    labels = (selector.get(label) for label in PRODUCT_LABELS)
    product = given.product or next(filter(None, labels), None)
    card = find_card(product)
    memory = None if given.memory is None else int(quantity_value(given.memory))
    facts = DeviceFacts(
        product=product,
        memory_bytes=memory or (card.memory_bytes if card else None),
        peak_teraflops=given.peak_teraflops or (card.peak_teraflops if card else None),
    )
    return None if facts == DeviceFacts() else facts
