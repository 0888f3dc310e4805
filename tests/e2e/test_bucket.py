# SPDX-License-Identifier: Apache-2.0
"""A run whose rows, base model and store are in buckets, without any claim, from rows to an answer.

Its profile is one for tenants: each namespace has a folder of its own, and pods have the uid that OpenShift
would choose, a CPU limit and additions.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from finetune_client.endpoint import ask, open_endpoint
from tests.e2e import manifests
from tests.e2e.team import Team, uid_of
from tests.s3server import ACCESS_KEY, SECRET_KEY, S3Server
from tools.cluster.layout import NODE_ADDRESS
from tools.models import tiny

pytestmark = pytest.mark.skipif(
    bool(os.environ.get("KUBE_CONTEXT")), reason="pods reach this machine at the local cluster's node only"
)

SECRET = {"credentialsSecretRef": {"name": "artifacts-s3"}}
STORE = {"uri": "s3://artifacts/{namespace}/finetune", **SECRET}
PROFILE = f"e2e-tenants-{manifests.OWN}"
USER = 1000680000
"""A uid that the image does not know."""
ROWS = {"uri": "s3://inputs/rows/bucket.jsonl", **SECRET}
MODEL = {"uri": "s3://inputs/tiny"}


@pytest.fixture
def server(team: Team, tmp_path: Path) -> Iterator[S3Server]:
    """An S3 server on the node's address, and the Secret with its keys."""
    with S3Server(tmp_path / "s3", host=str(NODE_ADDRESS)) as server:
        server.bucket("artifacts")
        inputs = server.bucket("inputs")
        shutil.copytree(tiny(), inputs / "tiny")
        (inputs / "rows").mkdir()
        (inputs / "rows" / "bucket.jsonl").write_text(manifests.jsonl("billing"))
        secret = manifests.credentials("artifacts-s3")
        keys = {"accessKeyId": ACCESS_KEY, "secretAccessKey": SECRET_KEY}
        team.apply({**secret, "stringData": {"endpoint": server.endpoint, **keys}})
        yield server


@pytest.fixture
def profile(team: Team) -> Iterator[str]:
    """A profile for namespaces with a label, here the one that Kubernetes sets on each."""
    tenants = manifests.profile(PROFILE)
    tenants["spec"] |= {
        "store": STORE,
        "namespaces": {"selector": {"matchLabels": {"kubernetes.io/metadata.name": team.namespace}}},
        "pods": [
            *tenants["spec"]["pods"],
            {
                "securityContext": {"runAsUser": USER, "fsGroup": USER},
                "labels": {"sidecar.istio.io/inject": "false"},
                "env": [{"name": "NCCL_DEBUG", "value": "WARN"}],
                "tolerations": [{"operator": "Exists"}],
                "topologySpreadConstraints": [{"topologyKey": "kubernetes.io/hostname"}],
                "cpuLimitRequestRatio": 20,
            },
        ],
    }
    team.apply(tenants)
    yield PROFILE
    team.kubectl("delete", "computeprofile", PROFILE)


def test_a_run_over_buckets_alone_ends_in_an_answer(
    team: Team, server: S3Server, profile: str, begun: None
) -> None:
    endpoint_of_it = manifests.endpoint("bucket", "bucket")
    compute = {"profile": profile}
    endpoint_of_it["spec"] |= {"baseModel": MODEL, "compute": compute}
    team.apply(
        manifests.finetunejob(
            "bucket", dataset={"source": ROWS}, baseModel={**MODEL, **SECRET}, compute=compute
        ),
        endpoint_of_it,
    )

    run = team.until("FineTuneJob", "bucket", "Ready", "Promoted")
    endpoint = team.until("InferenceDeployment", "bucket", "Ready")

    with open_endpoint(team.access, "bucket", team.namespace) as found, found.client() as client:
        assert ask(client, "tuned", "order late?") == "billing"
    objects = server.root / "artifacts" / team.namespace / "finetune"
    (served,) = endpoint["status"]["models"]
    weights = objects / "checkpoints" / served["digest"].removeprefix("sha256:")
    assert (weights / "manifest.json").exists()
    assert (objects / "runs" / uid_of(run) / "train" / "result.json").exists()
    (pod,) = team.children("pods", uid_of(run), "train")
    assert pod["spec"]["securityContext"]["runAsUser"] == USER
    assert pod["metadata"]["labels"]["sidecar.istio.io/inject"] == "false"
    assert "cpu" in pod["spec"]["containers"][0]["resources"]["limits"]
    claims = {
        volume["persistentVolumeClaim"]["claimName"]
        for volume in pod["spec"]["volumes"]
        if "persistentVolumeClaim" in volume
    }
    assert claims == set()
