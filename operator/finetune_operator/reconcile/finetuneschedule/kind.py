# SPDX-License-Identifier: Apache-2.0
"""The kind FineTuneSchedule."""

from collections.abc import Iterator
from typing import Any, Final

from finetune_operator.api.finetune_schedule import FineTuneSchedule
from finetune_operator.plan import Manifest
from finetune_operator.reconcile.finetuneschedule.reconciler import reconcile
from finetune_operator.reconcile.inputs.indexes import BY_DATASET, address, namespace_of, read_spec
from finetune_operator.reconcile.kind_table import KindRow


def _by_dataset(schedule: Manifest) -> Iterator[str]:
    template: dict[str, Any] = read_spec(schedule).get("template") or {}
    name = template.get("spec", {}).get("dataset", {}).get("ref", {}).get("name")
    if name:
        yield address(namespace_of(schedule), name)


KIND: Final = KindRow(
    model=FineTuneSchedule,
    reconcile=reconcile,
    own_indexers={BY_DATASET: _by_dataset},
)
