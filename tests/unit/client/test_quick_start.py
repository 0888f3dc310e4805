# SPDX-License-Identifier: Apache-2.0
"""The short cut: from a file of rows, a model and gates to YAML that the API server would accept."""

import hashlib
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune_client.errors import OperationError, ProgramExit
from finetune_client.offline.validation import judge_ours
from finetune_client.quick_start import Place, keep_for_local_runs, objects_for, write_quick_start
from finetune_client.transfer.uploading import Upload

MODEL = "hf://Qwen/Qwen3-0.6B"
ROWS = "message,team\nMy bill is wrong,billing\nWhere is it?,delivery\n"


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "My Tickets_2026.csv"
    path.write_text(ROWS)
    return path


def test_rows_model_and_gate_become_three_valid_objects(rows: Path) -> None:
    objects = objects_for(rows, f"{MODEL}@main", ["exact_match >= 0.8"], serve=True)

    assert [each["kind"] for each in objects] == ["Dataset", "FineTuneJob", "InferenceDeployment"]
    assert {each["metadata"]["name"] for each in objects} == {"my-tickets-2026"}
    assert [list(judge_ours(each)) for each in objects] == [[], [], []]
    dataset, run, endpoint = (each["spec"] for each in objects)
    assert dataset["sources"][0]["columns"] == {"prompt": "message", "completion": "team"}
    assert run["baseModel"] == endpoint["baseModel"] == {"uri": MODEL, "revision": "main"}
    assert run["evaluation"]["gates"] == [{"metric": "exact_match", "min": 0.8}]


def test_without_gates_the_run_promotes_what_an_endpoint_would_wait_for(rows: Path) -> None:
    dataset, run = objects_for(rows, MODEL)

    assert run["spec"]["promotion"] == {"mode": "Always"}
    assert [list(judge_ours(each)) for each in (dataset, run)] == [[], []]


@pytest.mark.parametrize(
    ("text", "gate"),
    [
        ("exact_match>=0.8", {"metric": "exact_match", "min": 0.8}),
        ("loss ≤ 1.5", {"metric": "loss", "max": 1.5}),
        ("exact_match >= 0.8 at 0.9", {"metric": "exact_match", "min": 0.8, "confidence": 0.9}),
        ("exact_match >= Prompted", {"metric": "exact_match", "minGain": 0.0, "over": "Prompted"}),
        ("exact_match >= Live + 0.1", {"metric": "exact_match", "minGain": 0.1, "over": "Live"}),
        ("loss <= Base - 0.3", {"metric": "loss", "minGain": 0.3, "over": "Base"}),
    ],
)
def test_a_gate_is_written_as_a_person_says_it(rows: Path, text: str, gate: dict[str, Any]) -> None:
    run = objects_for(rows, MODEL, [text])[1]

    assert run["spec"]["evaluation"]["gates"] == [gate]
    assert list(judge_ours(run)) == []


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("exact_match", "write it as 'exact_match >= 0.8'"),
        ("exact_mach >= 0.8", "did you mean exact_match"),
        ("exact_match >= 0.8.1", "0.8.1 is not a number"),
        ("exact_match >= Best", "compare with one of Base, Prompted, Live"),
        ("exact_match >= Base - 0.1", "compare with one of Base"),
        ("loss <= Base + 0.1", "compare with one of Base"),
        ("exact_match >= 0.8 + 0.1", "write it as"),
    ],
)
def test_a_wrong_gate_is_refused_with_an_example(rows: Path, text: str, advice: str) -> None:
    with pytest.raises(OperationError, match="is not a gate") as refused:
        objects_for(rows, MODEL, [text])
    assert advice in str(refused.value)
    assert refused.value.exit_code == ProgramExit.INVALID


@pytest.mark.parametrize(
    ("model", "advice"),
    [("Qwen/Qwen3-0.6B", "hf://Qwen/Qwen3-0.6B"), ("./model", "hf://ORG/NAME"), ("hf://", "")],
)
def test_a_model_without_a_scheme_is_refused_with_its_uri(rows: Path, model: str, advice: str) -> None:
    with pytest.raises(OperationError, match="is not the URI of a model") as refused:
        objects_for(rows, model)
    assert advice in str(refused.value)


def test_columns_that_nobody_can_guess_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("alpha,beta\na,b\n")

    with pytest.raises(OperationError, match="columns alpha, beta") as refused:
        write_quick_start(path, MODEL, place=keep_for_local_runs(path, tmp_path / "local"))
    assert refused.value.commands == (f"finetune check {path}",)
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OperationError, match="does not exist"):
        objects_for(tmp_path / "rows.csv", MODEL)
    with pytest.raises(OperationError, match="is a folder"):
        objects_for(tmp_path, MODEL)


def test_the_yaml_is_next_to_the_rows_and_the_rows_are_where_its_uri_says(rows: Path, tmp_path: Path) -> None:
    done = write_quick_start(
        rows,
        MODEL,
        ["exact_match >= 0.8"],
        serve=True,
        place=keep_for_local_runs(rows, tmp_path / "local"),
    )

    assert done.manifest == rows.with_name("My Tickets_2026.yaml")
    assert list(yaml.safe_load_all(done.manifest.read_text())) == done.objects
    assert "# One run." in done.manifest.read_text()
    uri = done.objects[0]["spec"]["sources"][0]["uri"]
    digest = hashlib.sha256(ROWS.encode()).hexdigest()
    assert uri == f"pvc://artifacts/uploads/{digest}/My-Tickets_2026.csv"
    stored = tmp_path / "local" / "claims" / uri.removeprefix("pvc://")
    assert stored.read_text() == ROWS
    assert done.said[0] == "columns guessed by their names: prompt = message, completion = team"
    assert done.said[1] == f"wrote {done.manifest}: Dataset, FineTuneJob, InferenceDeployment"


def test_the_same_call_again_continues_and_another_one_keeps_the_file(rows: Path, tmp_path: Path) -> None:
    first = write_quick_start(rows, MODEL, place=keep_for_local_runs(rows, tmp_path / "local"))
    before = first.manifest.read_text()

    assert (
        write_quick_start(rows, MODEL, place=keep_for_local_runs(rows, tmp_path / "local"))
        .said[1]
        .startswith("kept ")
    )
    with pytest.raises(OperationError, match="exists") as refused:
        write_quick_start(
            rows, MODEL, ["exact_match >= 0.8"], place=keep_for_local_runs(rows, tmp_path / "local")
        )
    assert refused.value.exit_code == ProgramExit.EXISTS
    assert first.manifest.read_text() == before


def test_the_same_rows_at_another_place_change_only_their_location(rows: Path, tmp_path: Path) -> None:
    digest = hashlib.sha256(ROWS.encode()).hexdigest()
    sources: dict[str, dict[str, Any]] = {
        "configmap": {"uri": f"configmap://my-tickets-2026-{digest[:10]}/My-Tickets_2026.csv"},
        "bucket": {
            "uri": f"s3://rows/uploads/{digest}/My-Tickets_2026.csv",
            "credentialsSecretRef": {"name": "bucket"},
        },
    }
    written: dict[str, list[dict[str, Any]]] = {}
    places: dict[str, Place] = {"local": keep_for_local_runs(rows, tmp_path / "local")}

    def always(source: dict[str, Any]) -> Place:
        return lambda _: source

    places |= {name: always(source) for name, source in sources.items()}
    for name, place in places.items():
        done = write_quick_start(rows, MODEL, place=place)
        written[name] = list(yaml.safe_load_all(done.manifest.read_text()))
        assert done.said[1].startswith("wrote" if name == "local" else "changed the location of the rows in")
        columns = {"columns": {"prompt": "message", "completion": "team"}}
        if name in sources:
            assert written[name][0]["spec"]["sources"] == [sources[name] | columns]
            assert list(judge_ours(written[name][0])) == []
        assert written[name][1:] == written["local"][1:]

    done.manifest.write_text(done.manifest.read_text() + "# reviewed by ann\n")
    with pytest.raises(OperationError, match="exists"):
        write_quick_start(rows, MODEL, place=lambda _: sources["configmap"])


def test_changed_rows_do_not_change_a_file_that_exists(rows: Path) -> None:
    def nowhere(_: Upload) -> dict[str, Any]:
        raise AssertionError("nothing is uploaded before the file is checked")

    write_quick_start(rows, MODEL, place=lambda _: {"uri": "s3://rows/of-before"})
    rows.write_text(ROWS + "More,billing\n")
    with pytest.raises(OperationError, match="exists"):
        write_quick_start(rows, MODEL, place=nowhere)
