# SPDX-License-Identifier: Apache-2.0
"""The table of other software's names: its fields exist, and each name has an advice."""

from typing import Any

import pytest

from finetune_operator.api.crd import KINDS, build_crd
from finetune_operator.api.foreign_names import FOREIGN_NAMES, ForeignName

SPECS: dict[str, Any] = {
    kind.name: build_crd(kind)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    for kind in KINDS
}


@pytest.mark.parametrize(
    ("software", "name"),
    [(software, name) for software, names in FOREIGN_NAMES.items() for name in names],
    ids=lambda each: each.name if isinstance(each, ForeignName) else each,
)
def test_a_name_of_other_software_leads_to_a_field_or_to_a_sentence(software: str, name: ForeignName) -> None:
    assert bool(name.kind) == bool(name.path)
    assert name.path or name.difference
    assert not name.difference.endswith(".")
    schema = SPECS[name.kind] if name.kind else {}
    for part in filter(None, name.path.split(".")):
        schema = schema.get("items", schema)
        assert part in schema["properties"], f"{software}: spec.{name.path} of {name.kind} does not exist"
        schema = schema["properties"][part]


def test_a_software_has_each_name_once() -> None:
    for names in FOREIGN_NAMES.values():
        listed = [each.name for each in names]
        assert len(listed) == len(set(listed))


def test_an_advice_names_what_to_write() -> None:
    (epochs,) = (each for each in FOREIGN_NAMES["Axolotl"] if each.name == "num_epochs")
    assert epochs.advice == "num_epochs is spec.hyperparameters.epochs of a FineTuneJob"
    (packing,) = (each for each in FOREIGN_NAMES["TRL and PEFT"] if each.name == "packing")
    assert packing.advice.startswith("packing has no field: rows are packed")
