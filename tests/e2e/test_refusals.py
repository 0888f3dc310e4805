# SPDX-License-Identifier: Apache-2.0
"""Runs that cannot succeed stop before they request a device and say what to fix; others recover."""

import json

import pytest

from finetune_client.backend import Object
from tests.e2e import manifests
from tests.e2e.pods import Keeper
from tests.e2e.team import PAUSE_SECONDS, Team, condition_of, exit_code, uid_of
from tests.waiting import eventually

LATE = f"e2e-late-{manifests.OWN}"
"""Name of a profile and a claim that a test creates late, and of a Secret that is never created."""
OTHER_DIGEST = f"sha256:{'0' * 64}"
NO_IMAGE = f"e2e-no-image-{manifests.OWN}"
"""A profile with a trainer image that does not exist."""
NO_MEMORY = f"e2e-no-memory-{manifests.OWN}"
"""A profile with too little memory to start Python."""

BAD_ROWS = "\n".join(
    (
        '{"prompt": "order late?", "completion": "billing"}',
        '{"prompt": "order lost?"}',
        "{not JSON",
        '{"prompt": "card lost?", "completion": ""}',
        "",
    )
)


pytestmark = pytest.mark.usefixtures("begun")


def begin(team: Team, keeper: Keeper, request: pytest.FixtureRequest) -> None:
    """Create the objects of this module's tests, and profiles on which no pod can succeed."""
    no_image, no_memory = manifests.profile(NO_IMAGE), manifests.profile(NO_MEMORY)
    no_image["spec"]["images"] = {"trainer": "localhost/no-such-image:dev"}
    no_memory["spec"]["pods"] = manifests.sized({"prepare": {"cpu": "20m", "memory": "12Mi"}})
    text = json.dumps({"apiVersion": "v1", "kind": "List", "items": [no_image, no_memory]})
    request.addfinalizer(lambda: team.access.kubectl("delete", "computeprofiles", NO_IMAGE, NO_MEMORY))
    team.access.kubectl("apply", "--server-side", "--filename=-", text=text)
    rows = manifests.own_rows("tickets")
    team.apply(
        manifests.configmap("bad-rows", BAD_ROWS),
        manifests.finetunejob("bad-rows", dataset=manifests.own_rows("bad-rows")),
        manifests.dataset("bad-rows", "bad-rows"),
        manifests.finetunejob("on-bad-rows", dataset={"ref": {"name": "bad-rows"}}),
        manifests.dataset("no-rows", "no-such-rows"),
        manifests.dataset(
            "needy",
            "tickets",
            sources=[
                {"uri": "https://rows.example/rows.jsonl", "credentialsSecretRef": {"name": LATE}},
            ],
            store={"uri": f"pvc://{LATE}"},
        ),
        manifests.finetunejob(
            "no-profile", compute={"profile": LATE}, baseModel={"uri": "pvc://models/no-such-model"}
        ),
        manifests.finetunejob("no-model-claim", baseModel={"uri": "pvc://no-such-claim/tiny"}),
        manifests.finetunejob(
            "other-model", baseModel={"uri": manifests.MODEL_URI, "digest": OTHER_DIGEST}
        ),
        manifests.finetunejob("no-image", dataset=rows, compute={"profile": NO_IMAGE}),
        manifests.finetunejob("no-memory", dataset=rows, compute={"profile": NO_MEMORY}),
    )  # fmt: skip


def stages_started(team: Team, name: str) -> list[str]:
    """Stages of the run's Jobs, which are kept for a day."""
    jobs = team.children("jobs", uid_of(team.get("FineTuneJob", name)))
    return sorted(job["metadata"]["labels"]["finetune.dev/stage"] for job in jobs)


def message(obj: Object, type_: str) -> str:
    text: str = condition_of(obj, type_)["message"]
    return text


def assert_names_the_bad_rows(problems: list[str]) -> None:
    for row in (2, 3, 4):
        assert any(f"row {row}" in problem for problem in problems), problems
    assert not any("row 1:" in problem for problem in problems), problems


def test_bad_rows_of_a_run_are_named_and_nothing_is_trained(team: Team) -> None:
    run = team.until("FineTuneJob", "bad-rows", "Stalled", "InvalidData")
    assert_names_the_bad_rows(run["status"]["problems"])
    assert stages_started(team, "bad-rows") == ["prepare"]


def test_bad_rows_of_a_dataset_are_named_and_runs_on_it_wait(team: Team) -> None:
    dataset = team.until("Dataset", "bad-rows", "Stalled", "InvalidData")
    assert_names_the_bad_rows(dataset["status"]["problems"])
    run = team.until("FineTuneJob", "on-bad-rows", "Reconciling", "DatasetFailed")
    assert "Dataset bad-rows failed" in message(run, "Reconciling")
    assert stages_started(team, "on-bad-rows") == []


def test_a_missing_claim_is_named_and_made_up_for_and_then_a_missing_secret_is_named(team: Team) -> None:
    needy = team.until("Dataset", "needy", "Reconciling", "StoreNotFound")
    assert f"PersistentVolumeClaim {LATE}" in message(needy, "Reconciling")
    team.apply(manifests.claim(LATE))

    needy = team.until("Dataset", "needy", "Reconciling", "InvalidCredentials")
    assert f"Secret {LATE}" in message(needy, "Reconciling")


def test_a_missing_profile_is_named_and_the_run_goes_on_when_it_exists(team: Team) -> None:
    run = team.until("FineTuneJob", "no-profile", "Reconciling", "ProfileNotFound")
    assert f"ComputeProfile {LATE}" in message(run, "Reconciling")
    team.access.kubectl("apply", "--server-side", "--filename=-", text=json.dumps(manifests.profile(LATE)))
    try:
        eventually(
            "the run goes on",
            lambda: "preflight" in stages_started(team, "no-profile"),
            60,
            describe=lambda: team.describe("FineTuneJob", "no-profile"),
            pause=PAUSE_SECONDS,
        )
    finally:
        team.access.kubectl("delete", "computeprofile", LATE)


def test_a_base_model_that_is_not_there_is_named(team: Team) -> None:
    run = team.until("FineTuneJob", "no-profile", "Stalled", "BaseModelNotFound")
    assert "pvc://models/no-such-model" in message(run, "Stalled")
    assert stages_started(team, "no-profile") == ["preflight"]

    run = team.until("FineTuneJob", "no-model-claim", "Reconciling", "BaseModelNotFound")
    assert "PersistentVolumeClaim no-such-claim" in message(run, "Reconciling")
    assert stages_started(team, "no-model-claim") == []


def test_a_base_model_with_another_digest_is_refused(team: Team) -> None:
    run = team.until("FineTuneJob", "other-model", "Stalled", "BaseModelDigestMismatch")
    assert OTHER_DIGEST in message(run, "Stalled")
    assert stages_started(team, "other-model") == ["preflight"]


def test_an_image_that_cannot_be_pulled_is_named_and_so_is_a_deadline_that_somebody_sets(team: Team) -> None:
    run = team.until("FineTuneJob", "no-image", "Reconciling", "ImageUnavailable")
    assert "image localhost/no-such-image:dev of the prepare pod" in message(run, "Reconciling")
    (job,) = team.children("jobs", uid_of(run))
    deadline = json.dumps({"spec": {"activeDeadlineSeconds": 1}})
    team.kubectl("patch", "job", job["metadata"]["name"], "--type=merge", f"--patch={deadline}")
    run = team.until("FineTuneJob", "no-image", "Stalled", "DeadlineExceeded")
    assert "activeDeadlineSeconds" in message(run, "Stalled")


def test_a_pod_that_needs_more_memory_than_it_may_have_is_tried_again_and_then_named(team: Team) -> None:
    run = team.until("FineTuneJob", "no-memory", "Stalled", "OutOfMemory")
    assert (
        f"limit of 12Mi: raise resources.memory for prepare in pods of ComputeProfile {NO_MEMORY}"
        in message(run, "Stalled")
    )
    pods = team.children("pods", uid_of(run))
    assert {exit_code(pod) for pod in pods} == {137}
    assert len(pods) == 3


def test_a_dataset_without_its_source_names_it(team: Team) -> None:
    # Run as the last test, because the pod waits up to one minute for a late ConfigMap.
    dataset = team.until("Dataset", "no-rows", "Reconciling", "SourceNotFound")
    assert "no-such-rows" in message(dataset, "Reconciling")
