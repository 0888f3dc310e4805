# SPDX-License-Identifier: Apache-2.0
"""The models are frozen, lenient towards newer releases, and camelCase on the wire."""

import pytest
from pydantic import ValidationError

from finetune_operator.api.finetune_job import FineTuneJob
from finetune_operator.api.meta import API_VERSION

MANIFEST = {
    "apiVersion": API_VERSION,
    "kind": "FineTuneJob",
    "metadata": {"name": "routing", "namespace": "team"},
    "spec": {
        "modelLine": "ticket-routing",
        "baseModel": {"uri": "pvc://models/gemma"},
        "dataset": {"ref": {"name": "tickets"}},
    },
}


def test_an_object_cannot_be_changed_in_place() -> None:
    run = FineTuneJob.model_validate(MANIFEST)
    with pytest.raises(ValidationError, match="frozen"):
        run.spec.suspend = True  # type: ignore[misc]


def test_a_field_of_a_newer_version_is_ignored() -> None:
    newer = {**MANIFEST, "spec": {**MANIFEST["spec"], "schedule": "daily"}}  # type: ignore[dict-item]
    assert FineTuneJob.model_validate(newer) == FineTuneJob.model_validate(MANIFEST)


def test_the_wire_form_is_camel_case_and_leaves_out_what_is_absent() -> None:
    spec = FineTuneJob.model_validate(MANIFEST).to_dict()["spec"]
    assert spec["baseModel"] == {"uri": "pvc://models/gemma"}
    assert spec["childrenTTLSeconds"] == 86400
    assert "store" not in spec


def test_reading_the_wire_form_gives_the_same_object() -> None:
    run = FineTuneJob.model_validate(MANIFEST)
    assert FineTuneJob.model_validate(run.to_dict()) == run
