# SPDX-License-Identifier: Apache-2.0
"""Uninstall and reinstall the operator: objects stay, endpoints serve, and new work waits."""

from finetune_client.backend import Object
from finetune_client.endpoint import ask, open_endpoint
from tests.e2e import manifests
from tests.e2e.pods import Keeper
from tests.e2e.team import PATIENCE_SECONDS, PAUSE_SECONDS, Team
from tests.waiting import eventually
from tools.demo.admin_access import AdminAccess
from tools.demo.install import RELEASE, SYSTEM, install
from tools.images.tags import References


def test_endpoints_serve_on_without_an_operator_and_the_next_one_takes_over_where_it_stopped(
    team: Team, access: AdminAccess, refs: References, keeper: Keeper, support: Object
) -> None:
    team.apply(
        manifests.configmap("passing", manifests.jsonl("passing")),
        manifests.dataset("passing", "passing", deletionPolicy="Delete"),
    )
    version = team.until("Dataset", "passing", "Ready")["status"]["latestVersion"]
    rows = team.get("DatasetVersion", version)["spec"]["digest"].removeprefix("sha256:")
    status, running = team.get("InferenceDeployment", "support")["status"], team.serving(support)

    # Stopped first: Helm removes its rights at once, and test_rights.py counts refused requests.
    access.kubectl("scale", f"deployment/{RELEASE}", f"--namespace={SYSTEM}", "--replicas=0")
    selector = f"app.kubernetes.io/instance={RELEASE}"
    eventually("the operator has stopped", lambda: not access.pods(SYSTEM, selector), pause=PAUSE_SECONDS)
    access.helm("uninstall", RELEASE, f"--namespace={SYSTEM}", "--wait")
    # Helm does not manage these two objects; the next operator creates them again.
    made = (f"lease/{RELEASE}", f"secret/{RELEASE}-report-tls")
    access.kubectl("delete", *made, f"--namespace={SYSTEM}")

    with open_endpoint(team.access, "support", team.namespace) as endpoint, endpoint.client() as client:
        assert ask(client, "tuned", "order late?") == "billing"
    team.kubectl("delete", "dataset", "passing", "--wait=false")
    assert rows in keeper.run("ls /store/datasets")

    install(access, refs)

    waiting = ("dataset/passing", f"datasetversion/{version}")
    eventually(
        "what waited for an operator is gone",
        lambda: not team.kubectl("get", *waiting, "--ignore-not-found"),
        PATIENCE_SECONDS,
        describe=lambda: team.describe("DatasetVersion", version),
        pause=PAUSE_SECONDS,
    )
    assert rows not in keeper.run("ls /store/datasets")
    assert team.get("InferenceDeployment", "support")["status"] == status
    assert team.serving(support) == running
