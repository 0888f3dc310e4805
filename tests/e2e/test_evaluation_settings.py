# SPDX-License-Identifier: Apache-2.0
"""One run with slices, a learning curve and custom metrics, and two runs whose custom metrics are refused."""

import json
from typing import Any, Final

import pytest

from finetune_client.backend import Object
from finetune_operator.api.labels import RUN, STAGE
from finetune_operator.manifests.labels import ISOLATED
from finetune_trainer.contract.environment import SCRATCH_MOUNT
from finetune_trainer.contract.results import OUTLOOKS
from tests.e2e import manifests
from tests.e2e.pods import Keeper
from tests.e2e.team import Team, condition_of, name_of, uid_of

CUSTOM: Final = f"e2e-custom-{manifests.OWN}"
"""Profile that allows custom metrics."""
SUBJECTS: Final = ("order", "invoice", "card", "box", "ticket", "password", "parcel", "refund")
QUESTIONS: Final = {
    "train": ("late", "lost", "paid"),
    "validation": ("new", "old", "big"),
    "test": ("torn", "gone"),
}
TAUGHT: Final = "billing"
AREAS: Final = {"north": TAUGHT, "south": "dispatch"}
"""Expected answer of the test rows by area. In training rows, it is always TAUGHT."""

METRICS: Final = {
    "agrees": """\
def metric(row, answer):
    return float(answer == row["completion"])
""",
    "confined": """\
import os

def metric(row, answer):
    folders = ("/var/run/secrets", "/run/secrets", "/mnt/store")
    return float(not any(map(os.path.exists, folders)) and not any("TOKEN" in name for name in os.environ))
""",
    "connects": """\
import socket

def metric(row, answer):
    socket.create_connection(("kubernetes.default.svc", 443), timeout=5).close()
    return 1.0
""",
}


def rows() -> str:
    """Rows of all splits with two areas, half of each split."""
    lines = [
        {
            "prompt": f"{subject} {question}?",
            "completion": AREAS[area] if part == "test" else TAUGHT,
            "part": part,
            "area": area,
        }
        for part, questions in QUESTIONS.items()
        for question in questions
        for subject, area in zip(SUBJECTS, list(AREAS) * 4, strict=True)
    ]
    return "".join(f"{json.dumps(line)}\n" for line in lines)


def own(*names: str) -> list[Object]:
    return [{"name": name, "configMapRef": {"name": "metrics", "key": f"{name}.py"}} for name in names]


def begin(team: Team, keeper: Keeper, request: pytest.FixtureRequest) -> None:
    """Create the profile, and a run for each outcome."""
    allowing = manifests.profile(CUSTOM)
    allowing["spec"]["allow"] = {"customCode": True}
    request.addfinalizer(lambda: team.access.kubectl("delete", "computeprofile", CUSTOM))
    team.access.kubectl("apply", "--server-side", "--filename=-", text=json.dumps(allowing))
    ref = {"dataset": {"ref": {"name": "areas"}}}
    sources = {f"{name}.py": source for name, source in METRICS.items()}
    team.apply(
        manifests.configmap("areas", rows()),
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "metrics"}, "data": sources},
        manifests.dataset("areas", "areas", split={"column": "part"}, keepColumns=["area"]),
        manifests.finetunejob(
            "measured",
            **ref,
            evaluation={
                "profile": CUSTOM,
                "metrics": ["exact_match"],
                "compare": [],
                "gates": [
                    {"metric": "exact_match", "min": 0.4},
                    {"metric": "custom/agrees", "min": 0.9},
                ],
                "sliceBy": "area",
                "customMetrics": own("agrees", "confined"),
            },
            learningCurve={"shares": [0.5]},
            promotion={"mode": "ByGates"},
        ),
        manifests.finetunejob(
            "connects",
            **ref,
            hyperparameters={"epochs": 1},
            evaluation={
                "profile": CUSTOM,
                "metrics": ["exact_match"],
                "compare": [],
                "customMetrics": own("connects"),
            },
            promotion={"mode": "Manual"},
        ),
        manifests.finetunejob(
            "not-allowed", **ref, evaluation={"customMetrics": own("agrees")}, promotion={"mode": "Manual"}
        ),
    )


@pytest.fixture(scope="module")
def measured(team: Team, begun: None) -> Object:
    """The run with all settings, which fails the gate of its custom metric."""
    return team.until("FineTuneJob", "measured", "Stalled", "GateFailed")


@pytest.fixture(scope="module")
def report(keeper: Keeper, measured: Object) -> dict[str, Any]:
    """The evaluation report of the run."""
    text = keeper.run(f"cat /store/runs/{uid_of(measured)}/evaluate/evaluation.json")
    found: dict[str, Any] = json.loads(text)
    return found


@pytest.fixture(scope="module")
def page(keeper: Keeper, measured: Object) -> str:
    """The evaluation page of the run."""
    return keeper.run(f"cat /store/runs/{uid_of(measured)}/evaluate/evaluation.html")


def test_a_gate_on_a_custom_metric_decides(team: Team, measured: Object) -> None:
    evaluation = measured["status"]["evaluation"]
    scores = {(each["metric"], each["subject"]): each["value"] for each in evaluation["scores"]}
    assert scores == {
        ("exact_match", "Tuned"): 0.5,
        ("custom/agrees", "Tuned"): 0.5,
        ("custom/confined", "Tuned"): 1,
    }
    assert [gate["verdict"] for gate in evaluation["gates"]] == ["Passed", "Failed"]
    assert "custom/agrees 0.5" in condition_of(measured, "Stalled")["message"]
    assert condition_of(team.checkpoint_of(measured), "Promoted")["status"] == "False"


def test_the_pod_of_custom_metrics_has_no_token_no_store_and_no_connections(
    team: Team, measured: Object
) -> None:
    (pod,) = team.children("pods", uid_of(measured), "score")
    assert pod["spec"]["serviceAccountName"] == ISOLATED
    assert pod["spec"]["automountServiceAccountToken"] is False
    mounts = {each["mountPath"]: each for each in pod["spec"]["containers"][0]["volumeMounts"]}
    assert {path for path, mount in mounts.items() if not mount.get("readOnly")} == {SCRATCH_MOUNT}
    assert all(mount.get("subPath") for mount in mounts.values() if mount["name"] == "store")

    (policy,) = team.children("networkpolicies", uid_of(measured))
    selected = policy["spec"]["podSelector"]["matchLabels"]
    assert selected == {RUN: uid_of(measured), STAGE: "score"}
    assert selected.items() <= pod["metadata"]["labels"].items()
    assert sorted(policy["spec"]["policyTypes"]) == ["Egress", "Ingress"]
    assert not {"egress", "ingress"} & policy["spec"].keys()


def test_a_custom_metric_that_opens_a_socket_fails_the_run(team: Team, begun: None) -> None:
    run = team.until("FineTuneJob", "connects", "Stalled", "CustomMetricFailed")
    message = condition_of(run, "Stalled")["message"]
    assert message.startswith("evaluation.customMetrics: connects: row ")
    assert "of the test split, answer of Tuned: PermissionError: socket is refused" in message
    assert "a custom metric has no network" in message


def test_a_profile_that_does_not_allow_custom_metrics_is_named(team: Team, begun: None) -> None:
    run = team.until("FineTuneJob", "not-allowed", "Reconciling", "CustomCodeNotAllowed")
    message = condition_of(run, "Reconciling")["message"]
    assert f"ComputeProfile {manifests.CPU} does not allow spec.evaluation.customMetrics" in message
    assert team.children("jobs", uid_of(run)) == []


def test_scores_are_shown_by_the_values_of_a_kept_column(report: dict[str, Any], page: str) -> None:
    slices = report["slices"]
    assert slices["column"] == "area"
    assert {
        part["value"]: (part["rows"], [(each["metric"], each["value"]) for each in part["scores"]])
        for part in slices["parts"]
    } == {"north": (8, [("exact_match", 1)]), "south": (8, [("exact_match", 0)])}
    assert "<h2>By area</h2>" in page


def test_a_learning_curve_has_a_point_for_the_run_and_for_each_share(
    measured: Object, report: dict[str, Any], page: str
) -> None:
    curve = measured["status"]["training"]["learningCurve"]
    assert [(point["share"], point["rows"]) for point in curve["points"]] == [(0.5, 12), (1, 24)]
    assert curve["validationRows"] == 24
    assert all(point["lossLow"] <= point["loss"] <= point["lossHigh"] for point in curve["points"])
    half, whole = curve["points"]
    assert whole["gain"] == pytest.approx(half["loss"] - whole["loss"], abs=2e-6)

    sentence = OUTLOOKS[curve["outlook"]]
    assert sentence[1:] in condition_of(measured, "Trained")["message"]
    assert report["learningCurve"]["outlook"] == sentence
    assert [point["loss"] for point in report["learningCurve"]["points"]] == [half["loss"], whole["loss"]]
    assert (
        f'<svg class="chart" viewBox="0 0 360 190" role="img" aria-label="Learning curve: {sentence}"' in page
    )


def test_the_weights_of_a_learning_curve_are_no_checkpoints_and_are_removed(
    team: Team, keeper: Keeper, measured: Object
) -> None:
    uid = uid_of(measured)
    checkpoints = json.loads(team.kubectl("get", "checkpoints", "--output=json"))["items"]
    of_run = {name_of(each) for each in checkpoints if each["spec"]["lineage"]["job"]["uid"] == uid}
    assert of_run == {each["name"] for each in measured["status"]["checkpoints"]}
    assert keeper.run(f"ls /store/runs/{uid}").split().count("learning-curve-0.5") == 1
    assert keeper.run(f"find /store/runs/{uid}/learning-curve-0.5 -type f") == ""
