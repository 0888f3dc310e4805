# SPDX-License-Identifier: Apache-2.0
"""The health check, run by the interpreter of Argo CD, agrees with kstatus for every kind and state."""

from collections.abc import Iterable
from pathlib import Path
from typing import Final

import pytest
import yaml

from finetune_operator.api.crd import KINDS_BY_NAME
from finetune_operator.plan import Manifest
from finetune_operator.reconcile.passes import PassOutcome
from tests.integration.judges import STATES, argo_health, kstatus, state
from tests.unit.operator.goldencases import CASES, GOLDEN, key, load, reviewed
from tests.unit.operator.test_kstatus import BLOCKED, DONE, FAILED, SUSPENDED, WORKING, after, resource

FOLDER: Final = Path(__file__).parents[2] / "examples" / "gitops" / "argocd"
PREFIX: Final = "resource.customizations.health.finetune.dev_"


def of(kind: str, generation: int, status: Manifest | None) -> Manifest:
    manifest: Manifest = {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": kind,
        "metadata": {"name": "x", "generation": generation},
    }
    return manifest | ({} if status is None else {"status": status})


def health(*manifests: Manifest) -> list[str]:
    return [status for status, _ in argo_health(manifests)]


def reconciled() -> Iterable[Manifest]:
    """The object of each golden case with the status that the case has or writes.

    Both tools report a deletion by themselves, whatever the status is.
    """
    for case in CASES:
        given = load(GOLDEN / "input" / f"{case}.yaml")
        plan = reviewed(GOLDEN / "output" / f"{case}.yaml")
        (manifest,) = (each for each in given.objects if key(each) == given.reconcile)
        status = plan.get("status") or manifest["status"]
        metadata = manifest["metadata"] | {"generation": status["observedGeneration"]}
        if "deletionTimestamp" not in metadata:
            yield manifest | {"metadata": metadata, "status": status}


def test_both_tools_see_the_state_of_every_kind() -> None:
    halts: dict[PassOutcome, str] = {
        WORKING: "Reconciling",
        BLOCKED: "Reconciling",
        FAILED: "Stalled",
        DONE: "Ready",
        SUSPENDED: "Suspended",
    }
    cases = [(kind, halt) for kind in KINDS_BY_NAME for halt in halts]
    manifests = [of(kind, 3, after(resource(kind), halt).manifest) for kind, halt in cases]

    assert argo_health(manifests) == [
        (STATES[halts[halt]][1], f"{halt.reason}: {halt.message}") for _, halt in cases
    ]
    assert kstatus(manifests) == [STATES[halts[halt]][0] for _, halt in cases]


def test_both_tools_see_the_state_in_every_golden_case() -> None:
    manifests = list(reconciled())
    states = [state(manifest) for manifest in manifests]
    expected = [STATES[each or "Ready"] for each in states]

    assert list(zip(kstatus(manifests), health(*manifests), strict=True)) == expected
    assert set(states) >= {"Ready", "Reconciling", "Stalled", None}
    assert {manifest["kind"] for manifest in manifests} >= {
        "FineTuneJob", "Dataset", "Checkpoint", "Evaluation", "InferenceDeployment",
    }  # fmt: skip


@pytest.mark.parametrize("kind", KINDS_BY_NAME)
def test_an_object_whose_latest_change_was_not_observed_is_in_progress(kind: str) -> None:
    manifests = [of(kind, 4, after(resource(kind), DONE).manifest), of(kind, 1, {"observedGeneration": -1})]

    assert health(*manifests) == ["Progressing", "Progressing"]
    assert kstatus(manifests) == ["InProgress", "InProgress"]
    assert health(of(kind, 1, None), of(kind, 1, {})) == ["Progressing", "Progressing"]


def test_a_record_without_a_state_is_healthy() -> None:
    available = {"type": "Available", "status": "True", "reason": "Available"}
    manifests = [of("DatasetVersion", 1, {"observedGeneration": 1, "conditions": [available]})]
    manifests.append(of("Checkpoint", 1, {"observedGeneration": 1}))

    assert argo_health(manifests) == [("Healthy", ""), ("Healthy", "")]
    assert kstatus(manifests) == ["Current", "Current"]


def test_a_condition_without_a_message_is_shown() -> None:
    stalled = {"type": "Stalled", "status": "True", "reason": "StageFailed"}
    manifest = of("FineTuneJob", 1, {"observedGeneration": 1, "conditions": [stalled]})

    assert argo_health([manifest]) == [("Degraded", "StageFailed: ")]


def test_the_configmap_has_the_check_of_every_kind() -> None:
    data = yaml.safe_load((FOLDER / "argocd-cm.yaml").read_text())["data"]

    assert data == {f"{PREFIX}{kind}": (FOLDER / "health.lua").read_text() for kind in sorted(KINDS_BY_NAME)}
