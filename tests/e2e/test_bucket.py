"""A run whose rows, base model and store are in buckets, without any claim, from rows to an answer."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e import manifests
from tests.e2e.team import Team, uid_of
from tests.s3server import ACCESS_KEY, SECRET_KEY, S3Server
from tools.cluster.layout import NODE_ADDRESS
from tools.demo.connection import open_endpoint
from tools.demo.questions import ask
from tools.models import tiny

pytestmark = pytest.mark.skipif(
    bool(os.environ.get("KUBE_CONTEXT")), reason="pods reach this machine at the local cluster's node only"
)

SECRET = {"credentialsSecretRef": {"name": "artifacts-s3"}}
STORE = {"uri": "s3://artifacts/team", **SECRET}
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


def test_a_run_over_buckets_alone_ends_in_an_answer(team: Team, server: S3Server, begun: None) -> None:
    rows = {"inline": {**manifests.source("none"), "source": ROWS}}
    endpoint_of_it = manifests.endpoint("bucket", "bucket")
    endpoint_of_it["spec"]["baseModel"] = MODEL
    team.apply(
        manifests.finetunejob("bucket", dataset=rows, baseModel={**MODEL, **SECRET}, store=STORE),
        endpoint_of_it,
    )

    run = team.until("FineTuneJob", "bucket", "Ready", "Promoted")
    endpoint = team.until("InferenceDeployment", "bucket", "Ready")

    with open_endpoint(team.access, "bucket", team.namespace) as found, found.client() as client:
        assert ask(client, "tuned", "order late?") == "billing"
    objects = server.root / "artifacts" / "team"
    (served,) = endpoint["status"]["models"]
    weights = objects / "checkpoints" / served["digest"].removeprefix("sha256:")
    assert (weights / "manifest.json").exists()
    assert (objects / "runs" / uid_of(run) / "train" / "result.json").exists()
    (pod,) = team.children("pods", uid_of(run), "train")
    claims = {
        volume["persistentVolumeClaim"]["claimName"]
        for volume in pod["spec"]["volumes"]
        if "persistentVolumeClaim" in volume
    }
    assert claims == set()
