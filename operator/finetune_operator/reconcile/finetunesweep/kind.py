# SPDX-License-Identifier: Apache-2.0
"""The kind FineTuneSweep."""

from collections.abc import Iterator
from typing import Any, Final

from finetune_operator.api.finetune_sweep import FineTuneSweep
from finetune_operator.engine.cache_memory import CompressionPolicy
from finetune_operator.plan import Manifest
from finetune_operator.reconcile.finetunesweep.reconciler import reconcile
from finetune_operator.reconcile.inputs.indexes import (
    BY_DATASET,
    address,
    has_ended,
    namespace_of,
    read_spec,
    read_status,
)
from finetune_operator.reconcile.kind_table import KindRow, is_ended


def _by_dataset(sweep: Manifest) -> Iterator[str]:
    if has_ended(sweep) or read_status(sweep).get("datasetVersion"):
        return
    template: dict[str, Any] = read_spec(sweep).get("template") or {}
    name = template.get("spec", {}).get("dataset", {}).get("ref", {}).get("name")
    if name:
        yield address(namespace_of(sweep), name)


KIND: Final = KindRow(
    model=FineTuneSweep,
    reconcile=reconcile,
    own_indexers={BY_DATASET: _by_dataset},
    compression=CompressionPolicy(is_ended),
)
