# SPDX-License-Identifier: Apache-2.0
"""Uploads and downloads against the API server, with its admission and its rights.

No node runs here: a thread reports pods as ready, and `kubectl exec` runs its command on this machine.
"""

import os
import signal
import stat
import subprocess
import sys
import threading
import webbrowser
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from finetune_client.cluster import ClusterBackend
from finetune_client.errors import ProgramExit
from finetune_client.program import main
from finetune_client.transfer.pod import PROCESS, TRANSFER, build_pod, user_hash
from finetune_operator.api.compute_profile import DEFAULT_PROFILE_LABEL
from finetune_trainer.contract.environment import STORE_MOUNT
from finetune_trainer.manifest import Manifest
from tests.integration import manifests
from tests.integration.api import Api, Object, Refused
from tests.integration.team import BASE
from tests.s3server import ACCESS_KEY, SECRET_KEY, S3Server
from tests.waiting import eventually
from tools.cluster import ControlPlane

ROWS: Final = '{"prompt": "where is my parcel", "completion": "shipping"}\n'
IMAGE: Final = "registry.example/trainer:1"
KUBECTL: Final = """#!/bin/sh
for last; do :; done
test "$last" = {mount} || exit 9
while [ "$1" != -- ]; do shift; done
exec {python} "$3" "$4" "$5" "$6" {store}
"""


@pytest.fixture(scope="module")
def team(installed: ControlPlane, api: Api) -> Iterator[str]:
    """A namespace with the level `restricted`, a user with the role `edit`, and a default store."""
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    name = "transfers"
    api.request(
        "POST", "/api/v1/namespaces", {"metadata": {"name": name, "labels": labels}}
    ).raise_for_status()
    binding = {
        "metadata": {"name": "ann"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "edit"},
        "subjects": [{"kind": "User", "name": "ann", "apiGroup": "rbac.authorization.k8s.io"}],
    }
    path = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{name}/rolebindings"
    api.request("POST", path, binding).raise_for_status()
    api.create(manifests.claim(name, "artifacts"))
    for each in api.list("ComputeProfile", ""):
        api.delete("ComputeProfile", "", each["metadata"]["name"])
    profile = manifests.profile("transfers")
    profile["metadata"]["annotations"] = {DEFAULT_PROFILE_LABEL: "true"}
    profile["spec"]["store"] = {"uri": "pvc://artifacts/team"}
    profile["spec"]["images"] = {"trainer": IMAGE}
    api.create(profile)
    eventually("the service account", lambda: api.get("ServiceAccount", name, "default"))
    yield name
    api.delete("ComputeProfile", "", "transfers")


@pytest.fixture
def store(tmp_path: Path) -> Path:
    folder = tmp_path / "store"
    folder.mkdir()
    return folder


@pytest.fixture
def environment(
    team: str, installed: ControlPlane, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], None]:
    """Makes a user the one of the program, whose `kubectl exec` reaches the store."""
    kubectl = tmp_path / "bin" / "kubectl"
    kubectl.parent.mkdir()
    kubectl.write_text(KUBECTL.format(python=sys.executable, mount=STORE_MOUNT, store=store))
    kubectl.chmod(kubectl.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{kubectl.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("COLUMNS", "400")

    def become(user: str) -> None:
        monkeypatch.setenv("KUBECONFIG", str(installed.client(user, administrator=False)))

    become("ann")
    return become


@pytest.fixture
def node(api: Api, team: str) -> Iterator[list[Object]]:
    """Reports the pods of the namespace as ready. Yields the pods that it saw."""
    seen: list[Object] = []
    ended = threading.Event()

    def report() -> None:
        while not ended.wait(0.1):
            for pod in api.list("Pod", team):
                if pod["metadata"]["name"] not in [each["metadata"]["name"] for each in seen]:
                    seen.append(pod)
                    ready = {"conditions": [{"type": "Ready", "status": "True"}], "phase": "Running"}
                    api.patch("Pod", team, pod["metadata"]["name"], {"status": ready}, "status")

    thread = threading.Thread(target=report)
    thread.start()
    yield seen
    ended.set()
    thread.join()


@dataclass(frozen=True)
class Scene:
    """A team's namespace, the content of its claim, and the pods that became ready."""

    api: Api
    team: str
    store: Path
    pods: list[Object]


@pytest.fixture
def scene(environment: object, api: Api, team: str, store: Path, node: list[Object]) -> Scene:
    return Scene(api, team, store, node)


def run(verb: str, *arguments: str) -> int:
    """Exit code of a verb as the user of the environment."""
    try:
        main([verb, f"--kubeconfig={os.environ['KUBECONFIG']}", *arguments])
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def rows(folder: Path, size: int = 1, name: str = "tickets.jsonl") -> Path:
    file = folder / name
    file.write_text(ROWS * (size // len(ROWS) + 1))
    return file


def test_a_few_rows_become_a_configmap_once(
    environment: object, api: Api, team: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = rows(tmp_path)
    assert run("upload", str(file), "-n", team) == 0
    first = capsys.readouterr()
    name, key = first.out.removeprefix("uri: configmap://").strip().split("/")
    stored = api.get("ConfigMap", team, name)
    assert stored is not None
    assert stored["data"] == {key: ROWS}
    assert stored["immutable"] is True
    assert "spec.sources of a Dataset" in first.err

    assert run("upload", str(file), "-n", team) == 0
    again = capsys.readouterr()
    assert again.out == first.out
    assert "there already" in again.err

    other = rows(tmp_path, 2 * len(ROWS))
    assert run("upload", str(other), "-n", team, "--name", name) == ProgramExit.EXISTS
    assert "nothing is overwritten" in capsys.readouterr().err
    assert api.get("ConfigMap", team, name) == stored


def test_many_rows_reach_the_claim_through_a_restricted_pod_that_is_removed(
    scene: Scene, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = rows(tmp_path, 1_000_000)
    assert run("upload", str(file), "-n", scene.team) == 0
    uri = capsys.readouterr().out.removeprefix("uri: ").strip()
    assert uri.startswith("pvc://artifacts/team/uploads/")
    assert (scene.store / uri.removeprefix("pvc://artifacts/")).read_bytes() == file.read_bytes()
    (pod,) = scene.pods
    assert pod["spec"]["containers"][0]["image"] == IMAGE
    assert pod["spec"]["serviceAccountName"] == "default"
    assert scene.api.list("Pod", scene.team) == []


def test_what_a_run_made_is_downloaded_and_checked(
    scene: Scene, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = scene.store / "team" / "checkpoints" / "made"
    weights.mkdir(parents=True)
    (weights / "adapter_model.safetensors").write_bytes(b"weights" * 1000)
    manifest = Manifest.of(weights)
    (weights / "manifest.json").write_bytes(manifest.to_bytes())
    checkpoint = manifests.of("Checkpoint", scene.team, "routing-1", {
        "modelLine": "routing", "digest": manifest.digest, "type": "Adapter", "step": 1, "epoch": 1,
        "uri": "pvc://artifacts/team/checkpoints/made",
        "lineage": {
            "baseModel": {"uri": "pvc://models/tiny", "digest": BASE},
            "datasetVersion": "tickets-1a2b3c4d5e6f",
            "job": {"name": "gone", "uid": "gone"}, "method": {"objective": "SFT", "type": "LoRA"},
            "adapter": {"r": 16}, "hyperparameters": manifests.HYPERPARAMETERS, "trainerImage": IMAGE,
        },
    })  # fmt: skip
    scene.api.create(checkpoint)
    target = tmp_path / "results"
    assert run("download", "routing-1", str(target), "-n", scene.team) == 0
    fetched = {file.name: file.read_bytes() for file in (target / "weights").iterdir()}
    assert fetched == {file.name: file.read_bytes() for file in weights.iterdir()}
    assert "2 files" in capsys.readouterr().out
    (pod,) = scene.pods
    assert pod["spec"]["volumes"][0]["persistentVolumeClaim"]["readOnly"] is True

    code = run("download", "routing-1", str(target), "-n", scene.team, "--what", "report")
    assert code == ProgramExit.FAILED
    assert "Checkpoint routing-1 has no report" in capsys.readouterr().err
    assert run("download", "absent", "-n", scene.team) == ProgramExit.FAILED
    assert "has the name absent" in capsys.readouterr().err


def test_the_page_of_a_run_is_opened_from_the_claim_of_a_cluster(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = scene.store / "team" / "runs" / "routing" / "train" / "report.html"
    page.parent.mkdir(parents=True)
    page.write_text("<h1>loss</h1>")
    scene.api.create(manifests.finetunejob(scene.team, "paged", suspend=True))
    uri = "pvc://artifacts/team/runs/routing/train/report.html"
    status = {"training": {"steps": 1, "reportUri": uri}}
    scene.api.patch("FineTuneJob", scene.team, "paged", {"status": status}, "status")
    opened: list[str] = []

    def browse(uri: str) -> bool:
        opened.append(uri)
        return True

    monkeypatch.setattr(webbrowser, "open", browse)

    assert run("report", "paged", "--open", "-n", scene.team) == 0

    (local,) = opened
    assert local.endswith("/paged-training.html")
    assert Path(local.removeprefix("file://")).read_text() == "<h1>loss</h1>"
    assert [each for each in scene.pods if each["spec"]["volumes"][0]["persistentVolumeClaim"]["readOnly"]]
    assert processes(scene.api, scene.team) == []


def test_a_right_that_is_missing_is_named_with_the_role_that_has_it(
    environment: Callable[[str], None], api: Api, team: str, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    environment("carl")
    assert run("upload", str(rows(tmp_path)), "-n", team) == ProgramExit.FAILED
    printed = capsys.readouterr().err
    assert f"you may not create configmaps in namespace {team}" in printed
    assert "the role edit" in printed
    file = rows(tmp_path, 1_000_000)
    assert run("upload", str(file), "-n", team, "--to", "pvc://artifacts") == ProgramExit.FAILED
    printed = capsys.readouterr().err
    assert f"you may not create pods in namespace {team}" in printed
    assert "the role edit" in printed
    assert api.list("Pod", team) == []


def test_a_quota_or_a_missing_claim_is_reported_before_anything_is_sent(
    environment: object, api: Api, team: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(rows(tmp_path))
    assert run("upload", file, "-n", team, "--to", "pvc://absent") == ProgramExit.FAILED
    assert f"PersistentVolumeClaim absent does not exist in namespace {team}" in capsys.readouterr().err
    quota = {"metadata": {"name": "none"}, "spec": {"hard": {"requests.memory": "1Mi"}}}
    path = f"/api/v1/namespaces/{team}/resourcequotas"
    api.request("POST", path, quota).raise_for_status()
    try:
        eventually(
            "the quota counts", lambda: api.request("GET", f"{path}/none").json()["status"].get("used")
        )
        assert run("upload", file, "-n", team, "--to", "pvc://artifacts") == ProgramExit.FAILED
        assert "exceeded quota: none" in capsys.readouterr().err
    finally:
        api.request("DELETE", f"{path}/none").raise_for_status()


def test_a_bucket_needs_no_pod_and_only_the_own_credentials(
    environment: object, team: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    file = rows(tmp_path, 1_000_000)
    with S3Server(tmp_path / "buckets") as server:
        bucket = server.bucket("artifacts")
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
        monkeypatch.setenv("AWS_REGION", "us-east-1")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
        upload = ("upload", str(file), "-n", team, "--to")
        assert run(*upload, "s3://artifacts/team") == ProgramExit.FAILED
        assert "refuses the credentials of this machine" in capsys.readouterr().err
        assert [each for each in bucket.rglob("*") if each.is_file()] == []

        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
        assert run(*upload, "s3://absent/team") == ProgramExit.FAILED
        assert not (server.root / "absent").exists()
        capsys.readouterr()
        for _ in range(2):
            assert run(*upload, "s3://artifacts/team") == 0
        uri = capsys.readouterr().out.splitlines()[-1].removeprefix("uri: s3://artifacts/")
        assert [each for each in bucket.rglob("*.jsonl") if each.is_file()] == [bucket / uri]
        assert (bucket / uri).read_bytes() == file.read_bytes()


def leftover(process: int) -> Object:
    return build_pod(
        claim="artifacts", image=IMAGE, account="default", profile=None, writes=True, owner=user_hash(),
        process=process,
    )  # fmt: skip


def test_the_pod_of_a_killed_program_is_removed_and_that_of_a_running_one_stays(
    environment: object, node: list[Object], api: Api, team: str, tmp_path: Path
) -> None:
    killed = subprocess.Popen(["sleep", "0"])
    killed.wait()
    for process in (killed.pid, os.getppid()):
        manifest = leftover(process)
        manifest["metadata"]["namespace"] = team
        api.create(manifest)
    assert run("upload", str(rows(tmp_path)), "-n", team, "--to", "pvc://artifacts") == 0
    (left,) = api.list("Pod", team)
    assert left["metadata"]["annotations"][PROCESS] == str(os.getppid())
    assert left["metadata"]["labels"][TRANSFER] == user_hash()
    api.delete("Pod", team, left["metadata"]["name"])


def processes(api: Api, team: str) -> list[str]:
    return [pod["metadata"]["annotations"][PROCESS] for pod in api.list("Pod", team)]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_upload_removes_its_pod(
    environment: object, api: Api, team: str, tmp_path: Path, number: signal.Signals
) -> None:
    """No pod becomes ready here, so the program waits."""
    # A shell starts jobs in the background with SIGINT ignored, which processes inherit.
    command = ["env", "--default-signal=INT", sys.executable, "-m", "finetune_client"]
    command += ["upload", str(rows(tmp_path)), "-n", team]
    with subprocess.Popen(
        [*command, "--to", "pvc://artifacts"], stderr=subprocess.PIPE, text=True
    ) as program:
        eventually("the pod exists", lambda: api.list("Pod", team), describe=lambda: str(program.poll()))
        program.send_signal(number)
        _, printed = program.communicate(timeout=60)
    assert program.returncode == ProgramExit.INTERRUPTED
    assert "run the same command again" in printed
    assert str(program.pid) not in processes(api, team)


def test_an_upload_that_is_interrupted_while_its_pod_is_created_removes_it(
    environment: object, api: Api, team: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = ClusterBackend.create
    created: list[Object] = []

    def create_and_interrupt(backend: ClusterBackend, manifest: Object) -> Object:
        created.append(create(backend, manifest))
        raise KeyboardInterrupt

    monkeypatch.setattr(ClusterBackend, "create", create_and_interrupt)
    code = run("upload", str(rows(tmp_path)), "-n", team, "--to", "pvc://artifacts")
    assert code == ProgramExit.INTERRUPTED
    assert len(created) == 1
    eventually("the pod is removed", lambda: api.list("Pod", team) == [])


def test_the_level_restricted_refuses_a_pod_with_less(api: Api, team: str) -> None:
    """Otherwise the tests above would prove nothing."""
    manifest = leftover(1)
    manifest["metadata"]["namespace"] = team
    del manifest["spec"]["containers"][0]["securityContext"]
    with pytest.raises(Refused, match="violates PodSecurity"):
        api.create(manifest)
