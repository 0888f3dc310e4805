# SPDX-License-Identifier: Apache-2.0
"""Objects that Flux or Argo CD applies from Git are not changed in the cluster."""

import pytest

from finetune_client.backend import Object
from finetune_client.errors import OperationError, ProgramExit
from finetune_client.ownership import find_git_owner, refuse_if_git_owns

KUSTOMIZATION = {
    "kustomize.toolkit.fluxcd.io/name": "runs",
    "kustomize.toolkit.fluxcd.io/namespace": "team-a",
}
PAUSED = {"kustomize.toolkit.fluxcd.io/reconcile": "disabled"}
SPEC: Object = {"f:spec": {"f:suspend": {}}}


def run(**metadata: object) -> Object:
    return {"metadata": {"name": "routing", "namespace": "team-a", **metadata}, "spec": {}}


def managed_by(manager: str, fields: Object = SPEC) -> Object:
    return run(
        managedFields=[{"manager": "kubectl", "fieldsV1": SPEC}, {"manager": manager, "fieldsV1": fields}]
    )


@pytest.mark.parametrize(
    ("obj", "owner"),
    [
        (run(labels=KUSTOMIZATION), "Flux (Kustomization team-a/runs)"),
        (
            run(labels={"helm.toolkit.fluxcd.io/name": "r", "helm.toolkit.fluxcd.io/namespace": "n"}),
            "Flux (HelmRelease n/r)",
        ),
        (
            run(
                annotations={
                    "argocd.argoproj.io/tracking-id": "support:finetune.dev/FineTuneJob:team-a/routing"
                }
            ),
            "Argo CD (Application support)",
        ),
        (run(labels={"argocd.argoproj.io/instance": "support"}), "Argo CD (Application support)"),
        (managed_by("kustomize-controller"), "Flux"),
        (managed_by("helm-controller"), "Flux"),
        (managed_by("argocd-controller"), "Argo CD"),
        (managed_by("argocd-application-controller"), "Argo CD"),
        (managed_by("kustomize-controller", {"f:metadata": {"f:labels": {}}}), "None"),
        (managed_by("kubectl-edit"), "None"),
        (run(labels=KUSTOMIZATION, annotations=PAUSED), "None"),
        (run(), "None"),
    ],
)
def test_the_marks_and_field_managers_of_flux_and_argo_cd_name_the_owner(obj: Object, owner: str) -> None:
    assert str(find_git_owner(obj)) == owner


def test_a_refusal_prints_the_fields_to_commit_and_ends_with_the_code_of_git() -> None:
    with pytest.raises(OperationError) as refused:
        refuse_if_git_owns("FineTuneJob", run(labels=KUSTOMIZATION), {"suspend": True})
    error = refused.value
    assert error.exit_code is ProgramExit.OWNED_BY_GIT
    assert int(error.exit_code) == 6
    assert str(error) == (
        "FineTuneJob routing is applied from Git by Flux (Kustomization team-a/runs), which would undo this"
        " change. Nothing was changed. Change these fields of its file, and commit:"
    )
    assert error.details == (
        "apiVersion: finetune.dev/v1alpha1",
        "kind: FineTuneJob",
        "metadata:",
        "  name: routing",
        "spec:",
        "  suspend: true",
    )
    assert error.commands[-1] == (
        "kubectl -n team-a annotate finetunejob routing kustomize.toolkit.fluxcd.io/reconcile=disabled"
    )


def test_argo_cd_has_no_annotation_for_an_emergency() -> None:
    with pytest.raises(OperationError) as refused:
        refuse_if_git_owns("FineTuneJob", managed_by("argocd-controller"), {"suspend": True})
    assert refused.value.commands == ()


def test_an_object_that_git_does_not_own_may_be_changed() -> None:
    refuse_if_git_owns("FineTuneJob", run(), {"suspend": True})
