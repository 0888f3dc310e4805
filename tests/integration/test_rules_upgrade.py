# SPDX-License-Identifier: Apache-2.0
"""Objects that were accepted before a rule existed stay usable with it."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.integration.api import Api, Object
from tests.integration.rules.requests import try_create, try_patch
from tests.waiting import eventually

DEFINITION = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/finetunejobs.finetune.dev"
CRD = Path(__file__).parents[2] / "crds" / "finetunejobs.yaml"
NEW_RULES = (
    "min is greater than max, so that no value passes the gate",
    "uri must not contain a user name or password",
    "uri must not have text in braces",
    "correct the address",
)

REFUSED: dict[str, Object] = {
    "placeholder-in-the-store": {"store": {"uri": "pvc://artifacts/{namespace}"}},
    "impossible-gate": {"evaluation": {"gates": [{"metric": "exact_match", "min": 0.9, "max": 0.1}]}},
    "impossible-port": {
        "evaluation": {
            "judges": [
                {
                    "name": "tone",
                    "endpoint": "https://judge:99999",
                    "model": "referee",
                    "instructions": "Kind answers win.",
                }
            ]
        }
    },
    "password-in-a-uri": {
        "dataset": {"source": {"uri": "https://reader:hunter2@rows.example/tickets.jsonl"}}
    },
}


def without_new_rules(node: Any) -> Any:
    if isinstance(node, dict):
        kept = {name: without_new_rules(child) for name, child in node.items()}
        if "x-kubernetes-validations" in kept:
            kept["x-kubernetes-validations"] = [
                rule
                for rule in kept["x-kubernetes-validations"]
                if not str(rule.get("message", "")).startswith(NEW_RULES)
            ]
        return kept
    return [without_new_rules(child) for child in node] if isinstance(node, list) else node


def install(api: Api, crd: Object) -> None:
    live = api.request("GET", DEFINITION).json()
    api.request("PUT", DEFINITION, {**live, "spec": crd["spec"]}).raise_for_status()


def run(name: str, spec: Object) -> Object:
    fields = {"modelLine": "m", "baseModel": {"uri": "pvc://m"}, "dataset": {"ref": {"name": "d"}}, **spec}
    return {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": name, "namespace": "default"},
        "spec": fields,
    }


def accepted(api: Api, manifest: Object) -> bool:
    return try_create(api, manifest, same_offline=False).accepted


def refused(api: Api, manifest: Object) -> bool:
    return not accepted(api, manifest)


@pytest.fixture
def existing(api: Api) -> Any:
    """Runs that were created before the present rules."""
    crd = yaml.safe_load(CRD.read_text())
    try:
        install(api, without_new_rules(crd))
        for name, spec in REFUSED.items():
            manifest = run(name, spec)
            eventually("the old rules are in force", partial(accepted, api, manifest))
        stored = {name: api.create(run(name, spec)) for name, spec in REFUSED.items()}
    finally:
        install(api, crd)
    for name, spec in REFUSED.items():
        manifest = run(f"new-{name}", spec)
        eventually("the new rules are in force", partial(refused, api, manifest))
    return stored


def test_a_run_that_a_new_rule_would_refuse_can_still_be_suspended_and_observed(
    api: Api, existing: dict[str, Object]
) -> None:
    for stored in existing.values():
        for suspend in (True, False):
            verdict = try_patch(api, stored, {"spec": {"suspend": suspend}})
            assert verdict.accepted, verdict.message
        status = try_patch(api, stored, {"status": {"observedGeneration": 1}}, subresource="status")
        assert status.accepted, status.message
        labelled = try_patch(api, stored, {"metadata": {"labels": {"team": "support"}}})
        assert labelled.accepted, labelled.message
