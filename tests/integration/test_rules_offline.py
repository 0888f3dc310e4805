# SPDX-License-Identifier: Apache-2.0
"""Corners in which `finetune validate` must judge and read as the API server and kubectl do.

`try_create` compares the verdicts, here and in the other modules of these rules.
"""

import copy
import json
import os
from pathlib import Path
from random import Random
from typing import Any, Final

import pytest

from finetune_client.errors import ProgramExit
from finetune_client.offline.manifests import ManifestFile, WrittenObject, read_manifests
from finetune_client.program import main
from finetune_operator.api.crd import KINDS, KINDS_BY_NAME
from tests.integration.api import Api, Object
from tests.integration.rules import files
from tests.integration.rules.requests import try_create
from tools.cluster import ControlPlane
from tools.cluster.toolchain import program

LABEL: Final = "a" * 63
CORNERS: Final[dict[str, tuple[bool, Object]]] = {
    "a null in the place of a default": (True, {"spec": {"suspend": None}}),
    "a null in the place of a required field": (False, {"spec": {"dataset": None}}),
    "a null for a required field of a rule": (False, {"spec": {"modelLine": None}}),
    "a null in a list": (False, {"spec": {"checkpoints": {"keepSteps": [10, None]}}}),
    "no spec": (False, {"spec": None}),
    "a fraction of zero": (True, {"spec": {"hyperparameters": {"epochs": 3.0}}}),
    "an integer for a fraction": (True, {"spec": {"hyperparameters": {"learningRate": 1}}}),
    "more than 64 bits": (False, {"spec": {"compute": {"devices": 10**20}}}),
    "a truth value for a number": (False, {"spec": {"hyperparameters": {"epochs": True}}}),
    "a blank that is not ASCII": (True, {"spec": {"baseModel": {"uri": "pvc://models/gemma\u00a0270m"}}}),
    "a line break at the end": (False, {"spec": {"modelLine": "ticket-routing\n"}}),
    "characters above 16 bits": (False, {"spec": {"store": {"uri": "pvc://a/" + "\U0001f600" * 893}}}),
    "as many as allowed": (True, {"spec": {"store": {"uri": "pvc://a/" + "\U0001f600" * 892}}}),
    "an unknown field of the metadata": (False, {"metadata": {"nmae": "a"}}),
    "an unknown field of the object": (False, {"sepc": {"a": 1}}),
    "an unknown field that is null": (False, {"spec": {"a": None}}),
    "a status": (True, {"status": {"phase": "Succeeded"}}),
    "an unknown field of the status": (False, {"status": {"faze": "Succeeded"}}),
    "a name with capitals": (False, {"metadata": {"name": "Tickets"}}),
    "a name with a blank": (False, {"metadata": {"name": "tickets v2"}}),
    "a generated name": (True, {"metadata": {"name": None, "generateName": "tickets-"}}),
    "no name": (False, {"metadata": {"name": None}}),
    "a label": (True, {"metadata": {"labels": {"example.com/team": LABEL, LABEL: ""}}}),
    "a label with a long value": (False, {"metadata": {"labels": {"team": f"{LABEL}a"}}}),
    "a label with a long name": (False, {"metadata": {"labels": {f"{LABEL}a": "x"}}}),
    "a label with blanks": (False, {"metadata": {"labels": {"team": "a b"}}}),
    "a label with a strange prefix": (False, {"metadata": {"labels": {"A_B/team": "x"}}}),
    "an annotation": (True, {"metadata": {"annotations": {"example.com/note": "a b\nc"}}}),
    "an annotation with a blank in its name": (False, {"metadata": {"annotations": {"a b": "x"}}}),
}


@pytest.mark.parametrize("corner", CORNERS)
def test_a_corner_is_judged_as_by_the_api_server(api: Api, corner: str) -> None:
    accepted, change = CORNERS[corner]

    verdict = try_create(api, _changed(files.minimal(KINDS_BY_NAME["FineTuneJob"]), change))

    assert verdict.accepted == accepted, verdict.message


def _changed(value: Any, change: Any) -> Any:
    """The value with these fields; a null stays one, except for a name."""
    if not isinstance(value, dict) or not isinstance(change, dict):
        return change
    result = {**value, **{key: _changed(value.get(key), each) for key, each in change.items()}}
    return {key: each for key, each in result.items() if key != "name" or each is not None}


@pytest.mark.parametrize(
    ("accepted", "endpoint"),
    [
        (True, "https://judge:8443/v1"),
        (True, "https://[::1]:8443/v1"),
        (False, "https://judge:port/v1"),
        (False, "https://judge:99999"),
        (False, "https://judge:0"),
        (True, "https://judge:"),
        (False, "https://jud|ge/v1"),
        (True, "https://bücher.example/v1"),
        (False, "https://[::1/v1"),
        (False, "https://judge/%zz"),
    ],
)
def test_an_address_is_read_as_by_the_api_server(api: Api, accepted: bool, endpoint: str) -> None:
    judge = {"name": "tone", "endpoint": endpoint, "model": "referee", "instructions": "Kind answers win."}
    job = _changed(files.minimal(KINDS_BY_NAME["FineTuneJob"]), {"spec": {"evaluation": {"judges": [judge]}}})

    verdict = try_create(api, job)

    assert verdict.accepted == accepted, verdict.message


ODD: Final[tuple[Any, ...]] = (
    *(None, True, 0, -1, 1.5, 10**25, [], {}, [None], [[]], {"a": None}, {"name": "x"}, [{"name": "x"}]),
    *("", "x", "a" * 3000, "https://[", "pvc://", "configmap://a b", "🙂", "200%", "-1Gi", "a\n", "10"),
)
NUM_CHANGES: Final = 200


def test_any_change_of_a_valid_object_is_judged_as_by_the_api_server(api: Api) -> None:
    """Each change gives a field an odd value, or that of another field."""
    random = Random(0)  # noqa: S311 - a choice of cases
    objects = [each for kind in KINDS for each in files.complete(kind)]
    accepted = 0
    for _ in range(NUM_CHANGES):
        obj = copy.deepcopy(random.choice(objects))
        places = [(owner, key) for part in ("spec", "status") for owner, key in _places(obj.get(part))]
        owner, key = random.choice(places)
        other, other_key = random.choice(places)
        owner[key] = copy.deepcopy(random.choice([random.choice(ODD), other[other_key]]))
        accepted += try_create(api, obj).accepted
    assert 0 < accepted < NUM_CHANGES


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every field and item: what has it, and its name or index."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    return [(value, key) for key in keys] + [place for key in keys for place in _places(value[key])]


SCALARS: Final = """\
1 -1 +1 010 0o10 0x1F 0b11 1_000 1e3 2e-4 .5 5. -0.25 1E+2 1:30 2026-01-31 2026-01-31T12:00:00Z yes No on OFF
y N true False null ~ Null nan . 1.2.3 0x 09 08.5 9223372036854775807 "5" 'yes' !!str 5 1k 50% 0% -- <<
"""


def test_scalars_are_read_as_by_kubectl(control_plane: ControlPlane) -> None:
    scalars = SCALARS.replace("!!str 5", "!!str_5").split()
    lines = "".join(f"    - {each.replace('!!str_', '!!str ')}\n" for each in scalars)
    text = (
        f"apiVersion: finetune.dev/v1alpha1\nkind: Dataset\nmetadata: {{name: a}}\nspec:\n  scalars:\n{lines}"
    )
    options = ("--dry-run=client", "--validate=false", "--output=json", "--filename=-")
    read = json.loads(control_plane.kubectl.run("create", *options, text=text))["spec"]["scalars"]

    (manifest,) = read_manifests(ManifestFile("-", text))

    assert isinstance(manifest, WrittenObject)
    ours = manifest.value["spec"]["scalars"]
    assert {
        s: (o, r) for s, o, r in zip(scalars, ours, read, strict=True) if json.dumps(o) != json.dumps(r)
    } == {}


@pytest.fixture
def users_kubectl(control_plane: ControlPlane, monkeypatch: pytest.MonkeyPatch) -> None:
    """kubectl and its kubeconfig, where the program looks for them."""
    monkeypatch.setenv("KUBECONFIG", str(control_plane.client("user")))
    monkeypatch.setenv("PATH", str(program("kubectl").parent), prepend=os.pathsep)


@pytest.mark.usefixtures("users_kubectl")
def test_a_dry_run_shows_what_only_the_api_server_can_refuse(
    api: Api, namespace: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stored = _changed(files.minimal(KINDS_BY_NAME["FineTuneJob"]), {"metadata": {"namespace": namespace}})
    api.create(stored)
    file = tmp_path / "run.json"
    file.write_text(json.dumps(_changed(stored, {"spec": {"modelLine": "other"}})))

    def validate(*options: str) -> tuple[Any, str]:
        with pytest.raises(SystemExit) as end:
            main(["validate", str(file), *options])
        return end.value.code, capsys.readouterr().out

    assert validate()[0] == ProgramExit.DONE
    code, printed = validate("--server")
    assert code == ProgramExit.INVALID
    assert f"{file}:1: FineTuneJob/{stored['metadata']['name']}: the API server refuses it: " in printed
    assert "modelLine is immutable" in printed
    (kept,) = api.list("FineTuneJob", namespace)
    assert kept["spec"]["modelLine"] == stored["spec"]["modelLine"]
