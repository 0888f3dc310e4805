"""The health check for Argo CD agrees with the states that the operator writes, for every kind."""

from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from finetune_operator.api.kinds import KINDS_BY_NAME
from finetune_operator.plan import Manifest
from finetune_operator.reconcile.steps import Halt
from tests.unit.operator.test_kstatus import BLOCKED, DONE, FAILED, SUSPENDED, WORKING, after, resource

lua51: Final[Any] = pytest.importorskip("lupa.lua51", reason="needs a Lua interpreter: run `make .venv`")

FOLDER: Final = Path(__file__).parents[2] / "examples" / "argocd"
CHECK: Final = (FOLDER / "health.lua").read_text()


def health(generation: int, status: Manifest | None) -> tuple[str, str | None]:
    """Status and message, from the Lua 5.1 that Argo CD's interpreter implements."""
    runtime = lua51.LuaRuntime()
    manifest: Manifest = {"metadata": {"name": "x", "generation": generation}}
    if status is not None:
        manifest["status"] = status
    runtime.globals().obj = runtime.table_from(manifest, recursive=True)
    result = runtime.execute(CHECK)
    return result["status"], result["message"]


@pytest.mark.parametrize("kind", KINDS_BY_NAME)
@pytest.mark.parametrize(
    ("halt", "expected"),
    [
        (WORKING, "Progressing"),
        (BLOCKED, "Progressing"),
        (FAILED, "Degraded"),
        (DONE, "Healthy"),
        (SUSPENDED, "Suspended"),
    ],
)
def test_the_health_of_every_state(kind: str, halt: Halt, expected: str) -> None:
    status = after(resource(kind), halt).manifest

    assert health(3, status) == (expected, f"{halt.reason}: {halt.message}")


def test_an_object_whose_latest_change_was_not_observed_is_progressing() -> None:
    status = after(resource("FineTuneJob"), DONE).manifest

    assert health(4, status)[0] == "Progressing"
    assert health(1, None)[0] == "Progressing"
    assert health(1, {})[0] == "Progressing"


def test_a_record_without_a_state_is_healthy() -> None:
    assert health(1, {"observedGeneration": 1}) == ("Healthy", None)
    available = {"type": "Available", "status": "True", "reason": "Available"}
    assert health(1, {"observedGeneration": 1, "conditions": [available]}) == ("Healthy", None)


def test_a_condition_without_a_message_is_shown() -> None:
    stalled = {"type": "Stalled", "status": "True", "reason": "StageFailed"}

    assert health(1, {"observedGeneration": 1, "conditions": [stalled]}) == ("Degraded", "StageFailed: ")


def test_every_kind_has_the_check() -> None:
    kustomization = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())
    (generator,) = kustomization["configMapGenerator"]

    assert generator["files"] == [
        f"resource.customizations.health.finetune.dev_{kind}=health.lua" for kind in sorted(KINDS_BY_NAME)
    ]
