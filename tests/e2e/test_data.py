# SPDX-License-Identifier: Apache-2.0
"""Rows in every format become versions, invalid rows are named, and a changed source makes one version."""

import json
import os
from typing import Final

import pytest
import yaml

from finetune_client.backend import Object
from tests.e2e import manifests
from tests.e2e.pods import Keeper
from tests.e2e.sessions import selected
from tests.e2e.team import PATIENCE_SECONDS, PAUSE_SECONDS, Team, condition_of, uid_of
from tests.waiting import eventually
from tools.bootstrap.uv import ROOT

EXAMPLES: Final = ROOT / "examples" / "data"
FORMATS: Final = {
    "alpaca": "Alpaca",
    "chat-messages": "ChatMessages",
    "doccano": "Doccano",
    "kto": "KTO",
    "label-studio": "LabelStudio",
    "preference": "Preference",
    "prompt-completion": "PromptCompletion",
    "sharegpt": "ShareGPT",
    "table-csv": "CSV",
    "table-parquet": "Parquet",
    "table-tsv": "TSV",
}
"""Detected format of the file, by Dataset of the example."""
SAMPLE: Final = ("chat-messages", "label-studio", "table-parquet")
"""Datasets of `make test`: tests/unit/test_examples.py prepares all of them without a cluster."""

ROWS: Final = manifests.PROMPTS[:12]
CHANGED: Final = (*ROWS[1:], "bell broken?")
"""ROWS with one row removed and one added."""


def begin(team: Team, keeper: Keeper, request: pytest.FixtureRequest) -> None:
    """Create the example in the team's namespace, and the objects of the other tests."""
    folder = request.getfixturevalue("tmp_path_factory").mktemp("data").resolve()
    names = selected(request, "name")
    left_out = [
        manifests.claim("artifacts"),
        *(manifests.of("Dataset", name, {}) for name in FORMATS if name not in names),
    ]
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [os.path.relpath(EXAMPLES, folder)],
        "patches": [{"patch": yaml.safe_dump(manifests.left_out(each))} for each in left_out],
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    team.kubectl("apply", "--server-side", "--force-conflicts", f"--kustomize={folder}")
    team.apply(
        manifests.configmap("changing-rows", manifests.jsonl("billing", ROWS)),
        manifests.dataset("changing", "changing-rows"),
        manifests.configmap("dubious-rows", _dubious()),
        manifests.dataset("dubious", "dubious-rows", onInvalidRows="Drop", checks={"emailAddresses": "Fail"}),
    )


def _dubious() -> str:
    rows = manifests.jsonl("billing", ROWS)
    return rows + '{"prompt": "who?", "completion": "ask jo@example.com"}\n{"prompt": "broken"\n'


@pytest.mark.parametrize(
    ("name", "found"),
    [pytest.param(*each, marks=() if each[0] in SAMPLE else pytest.mark.full) for each in FORMATS.items()],
)
def test_a_dataset_of_each_format_becomes_a_version(team: Team, begun: None, name: str, found: str) -> None:
    dataset = team.until("Dataset", name, "Ready")

    status = dataset["status"]
    assert (status["format"], status["problemCount"]) == (found, 0)
    version = team.get("DatasetVersion", status["latestVersion"])
    assert version["spec"]["format"] == found
    assert status["rows"] == sum(split["rows"] for split in version["spec"]["splits"]) == 12
    assert any("start with 200–500 rows, measure, then scale" in warning for warning in status["warnings"])


def test_dropped_rows_are_named_in_the_status_and_in_an_event_with_the_way_to_the_report(
    team: Team, begun: None
) -> None:
    dataset = team.until("Dataset", "dubious", "Ready")

    status = dataset["status"]
    assert (status["rows"], status["problemCount"]) == (12, 2)
    assert status["problems"][0].startswith("row 13: completion has an e-mail address at character 5;")
    assert "jo@" not in json.dumps(status)
    assert status["problems"][1].startswith("row 14: not valid JSON at column")
    assert status["report"].startswith("pvc://artifacts/runs/")
    assert status["report"].endswith("/prepare/report.html")
    events = team.kubectl("get", "events", "--field-selector=involvedObject.name=dubious", "--output=json")
    notes = [event["message"] for event in json.loads(events)["items"] if event["type"] == "Warning"]
    assert any(status["report"] in note for note in notes), notes


def _look(team: Team, name: str, request: str) -> Object:
    """Request a check of the source, and wait until it is complete."""
    team.kubectl("annotate", "dataset", name, f"finetune.dev/refresh-requested={request}", "--overwrite")

    def looked() -> Object | None:
        found = team.get("Dataset", name)
        refresh = found["status"].get("refresh", {})
        jobs = team.children("jobs", uid_of(found))
        done = refresh.get("requested") == request and all(
            job["status"].get("completionTime") for job in jobs
        )
        return found if done and condition_of(found, "Refreshed").get("status") == "True" else None

    return eventually(
        f"the look {request} at the source of {name} is through",
        looked,
        PATIENCE_SECONDS,
        describe=lambda: team.describe("Dataset", name),
        pause=PAUSE_SECONDS,
    )


def _versions(team: Team, name: str) -> list[str]:
    found = json.loads(team.kubectl("get", "datasetversions", "--output=json"))["items"]
    return [version["metadata"]["name"] for version in found if version["spec"]["dataset"] == name]


def test_a_source_that_changed_yields_exactly_one_new_version(team: Team, begun: None) -> None:
    first = team.until("Dataset", "changing", "Ready")["status"]["latestVersion"]

    unchanged = _look(team, "changing", "1")
    assert unchanged["status"]["latestVersion"] == first
    assert _versions(team, "changing") == [first]

    team.apply(manifests.configmap("changing-rows", manifests.jsonl("billing", CHANGED)))
    changed = _look(team, "changing", "2")
    second = changed["status"]["latestVersion"]
    assert second != first
    assert sorted(_versions(team, "changing")) == sorted((first, second))
    assert changed["status"]["difference"] == {"previous": first, "added": 1, "removed": 1, "changed": 0}

    again = _look(team, "changing", "3")
    assert again["status"]["latestVersion"] == second
    assert sorted(_versions(team, "changing")) == sorted((first, second))


def test_a_source_that_broke_takes_nothing_away(team: Team, begun: None) -> None:
    before = team.until("Dataset", "changing", "Ready")["status"]["latestVersion"]
    team.apply(manifests.configmap("changing-rows", "{broken\n"))
    team.kubectl("annotate", "dataset", "changing", "finetune.dev/refresh-requested=broken", "--overwrite")

    def told() -> Object | None:
        found = team.get("Dataset", "changing")
        return found if condition_of(found, "Refreshed").get("reason") == "InvalidData" else None

    found = eventually(
        "the broken source is told",
        told,
        PATIENCE_SECONDS,
        describe=lambda: team.describe("Dataset", "changing"),
        pause=PAUSE_SECONDS,
    )
    assert condition_of(found, "Ready")["status"] == "True"
    assert found["status"]["latestVersion"] == before
    assert "row 1" in condition_of(found, "Refreshed")["message"]
