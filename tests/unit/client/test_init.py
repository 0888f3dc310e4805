# SPDX-License-Identifier: Apache-2.0
"""`finetune init`: what it writes, what it keeps, and that a wheel has the examples."""

import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune_client.errors import ProgramExit
from finetune_client.program import main
from finetune_client.templates import TEMPLATES, template_files
from finetune_client.verbs import options

ROOT = Path(__file__).parents[3]


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as end:
        main(["init", *arguments])
    return int(end.value.code or 0)


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_template_is_written_with_its_rows_and_its_run(template: str) -> None:
    assert run(template, "here") == ProgramExit.DONE

    kustomization = yaml.safe_load(Path("here/kustomization.yaml").read_text())
    files = [*kustomization["resources"], *kustomization["configMapGenerator"][0]["files"]]
    assert "finetunejob.yaml" in files
    example = ROOT / "examples" / template
    assert [Path("here", each).read_bytes() for each in files] == [
        (example / each).read_bytes() for each in files
    ]


def test_without_arguments_the_first_template_goes_into_a_folder_of_its_name() -> None:
    assert run() == ProgramExit.DONE
    assert Path("ticket-routing/data/tickets.jsonl").is_file()


def test_a_file_that_exists_ends_with_3_and_nothing_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    Path("here").mkdir()
    Path("here/dataset.yaml").write_text("mine")

    assert run("ticket-routing", "here") == ProgramExit.EXISTS
    assert "here/dataset.yaml exists, and nothing is overwritten" in capsys.readouterr().err
    assert [path.read_text() for path in Path("here").iterdir()] == ["mine"]


def test_an_unknown_template_names_those_that_exist(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("tickets") == ProgramExit.INVALID
    said = capsys.readouterr().err
    assert "use one of ticket-routing, brand-voice, order-extraction" in said
    assert "finetune init --list" in said


def test_the_list_says_what_each_template_shows(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--list") == ProgramExit.DONE
    assert [line.split("  ")[0].strip() for line in capsys.readouterr().out.splitlines()] == [*TEMPLATES]


class OneRun:
    """A backend with one run."""

    namespace = "team"

    def objects(self, kind: str) -> list[dict[str, Any] | None]:
        return [self.get(kind, "old")]

    def get(self, kind: str, name: str) -> dict[str, Any] | None:
        spec = {"modelLine": "tickets", "suspend": True}
        found = {
            "apiVersion": "v",
            "kind": kind,
            "metadata": {"name": "old", "uid": "u"},
            "spec": spec,
            "status": {},
        }
        return found if name == "old" else None


def test_a_run_is_copied_under_a_new_name_without_its_state(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(options, "connect", lambda **_: OneRun())

    assert run("--from", "old") == ProgramExit.DONE
    assert yaml.safe_load(Path("old-2.yaml").read_text()) == {
        "apiVersion": "v",
        "kind": "FineTuneJob",
        "metadata": {"name": "old-2"},
        "spec": {"modelLine": "tickets"},
    }
    assert run("--from", "old") == ProgramExit.EXISTS
    assert run("--from", "none") == ProgramExit.INVALID


def test_a_wheel_contains_every_template() -> None:
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    included = build["targets"]["wheel"]["force-include"]
    assert included == {f"examples/{name}": f"finetune_client/examples/{name}" for name in TEMPLATES}
    assert all(path.is_file() for name in TEMPLATES for path in template_files(name).values())


def test_nothing_heavy_is_imported() -> None:
    heavy = ("kubernetes", "pydantic", "finetune_trainer", "finetune_operator")
    code = f"import sys, finetune_client.verbs.init; print([n for n in {heavy} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
