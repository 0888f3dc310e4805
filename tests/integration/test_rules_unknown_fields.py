# SPDX-License-Identifier: Apache-2.0
"""Misspelt field names are reported instead of dropped."""

import pytest
import yaml

from finetune_operator.api.crd import KINDS, KINDS_BY_NAME, Kind
from tests.integration.api import Api
from tests.integration.rules import files
from tests.integration.rules.requests import try_create
from tests.mergepatch import merged
from tools.cluster import ClusterError, ControlPlane

FINETUNEJOB = files.minimal(KINDS_BY_NAME["FineTuneJob"])


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_an_unknown_field_is_named(api: Api, kind: Kind) -> None:
    verdict = try_create(api, merged(files.minimal(kind), {"spec": {"deletionPolice": "Retain"}}))
    assert verdict.status == 400
    assert 'unknown field "spec.deletionPolice"' in verdict.message


def test_an_object_in_the_place_of_a_list_is_named(api: Api) -> None:
    evaluation = {"gates": {"metric": "exact_match", "min": 0.8}}
    verdict = try_create(api, merged(FINETUNEJOB, {"spec": {"evaluation": evaluation}}))
    assert verdict.status == 400
    assert 'unknown field "spec.evaluation.gates.metric"' in verdict.message


def test_kubectl_apply_shows_every_mistake_of_a_manifest(control_plane: ControlPlane) -> None:
    typo = merged(FINETUNEJOB, {"spec": {"hyperparamters": {"epochs": 3}}})
    wrong = merged(FINETUNEJOB, {"spec": {"baseModel": {"checkpoint": "other"}, "compute": {"devices": -1}}})
    with pytest.raises(ClusterError) as refusal:
        _apply(control_plane, yaml.safe_dump_all([typo, wrong]))
    said = str(refusal.value)
    assert 'unknown field "spec.hyperparamters"' in said
    assert "baseModel.checkpoint has its own base model: remove baseModel.uri to continue from" in said
    assert "spec.compute.devices: Invalid value: -1" in said


def test_kubectl_apply_shows_the_sentence_of_a_rule_for_every_kind(control_plane: ControlPlane) -> None:
    cases = [case for kind in KINDS for case in files.refusals(kind)[-1:]]
    text = yaml.safe_dump_all([case.given for case in cases])
    with pytest.raises(ClusterError) as refusal:
        control_plane.kubectl.run("apply", "--filename=-", text=text)
    for case in cases:
        assert f"{case.field}: Invalid value" in str(refusal.value), case
        assert case.refused_with in str(refusal.value), case


def test_kubectl_apply_takes_a_learning_rate_in_scientific_notation(control_plane: ControlPlane) -> None:
    text = yaml.safe_dump(FINETUNEJOB)
    text += "  hyperparameters:\n    learningRate: 2e-4\n"
    assert _apply(control_plane, text).strip() == "0.0002"


def _apply(control_plane: ControlPlane, text: str) -> str:
    """Apply with a dry run, and return the resulting learning rate."""
    output = "--output=jsonpath={.spec.hyperparameters.learningRate}"
    return control_plane.kubectl.run("apply", "--dry-run=server", "--filename=-", output, text=text)
