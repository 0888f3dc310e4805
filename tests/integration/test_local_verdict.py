# SPDX-License-Identifier: Apache-2.0
"""A local run decides the same, word for word, as the operator in a real API server from the same results."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune_client.local.backend import LocalBackend
from finetune_trainer.contract.configs import EvaluateConfig, StageConfig
from finetune_trainer.contract.results import StageResult
from tests.fakekubelet import FakeKubelet
from tests.integration import manifests
from tests.integration.api import Api
from tests.integration.chain import until_condition
from tests.integration.manifests import condition
from tests.integration.operators import Operators
from tests.unit.client.localprocesses import Machine, badly_scored, score_badly, succeed
from tests.waiting import eventually
from tools.fakepods import succeeded

Object = dict[str, Any]
SPEC: Object = {
    "evaluation": {
        "metrics": ["exact_match", "macro_f1", "loss"],
        "compare": ["Base", "Prompted"],
        "prompted": {"systemPrompt": "Name the team.", "examples": 2},
        "gates": [
            {"metric": "exact_match", "min": 0.8, "confidence": 0.9},
            {"metric": "exact_match", "minGain": 0.3, "over": "Base"},
        ],
    }
}


@pytest.fixture(params=[True, False], ids=["gates passed", "gates failed"])
def passes(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
def outcome(passes: bool) -> Callable[[StageConfig], StageResult | None]:
    def result(config: StageConfig) -> StageResult:
        return (
            badly_scored(config) if isinstance(config, EvaluateConfig) and not passes else succeeded(config)
        )

    return result


def verdict(job: Object, checkpoint: Object) -> Object:
    """What was decided, without times and without what is new in each run: uids, names and digests of it."""
    promoted = condition(checkpoint, "Promoted")
    fields = {
        "evaluation": job["status"]["evaluation"],
        "promoted": {key: promoted[key] for key in ("status", "reason", "message")},
        "scores": [
            {key: value for key, value in each.items() if key != "time"}
            for each in checkpoint["status"]["evaluations"]
        ],
    }
    text = json.dumps(fields, sort_keys=True)
    metadata, spec = checkpoint["metadata"], checkpoint["spec"]
    for value, word in (
        (metadata["name"], "CHECKPOINT"),
        (spec["digest"], "DIGEST"),
        (job["metadata"]["uid"], "UID"),
        (job["metadata"]["namespace"], "NAMESPACE"),
    ):
        text = text.replace(value, word)
    decided = json.loads(text)
    assert isinstance(decided, dict)
    return decided


def test_the_verdict_equals_that_of_the_operator_in_a_cluster(
    *,
    api: Api,
    namespace: str,
    operators: Operators,
    kubelet: FakeKubelet,
    passes: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    objects = [manifests.dataset(namespace), manifests.finetunejob(namespace, **SPEC)]
    operator = operators.start().wait_active()
    for manifest in objects:
        api.create(manifest)
    ended = "Ready" if passes else "Stalled"
    job = until_condition(api, (namespace, "FineTuneJob", "routing"), ended, operator)
    made = job["status"]["evaluation"]["checkpoint"]

    def judged() -> Object | None:
        record = api.get("Checkpoint", namespace, made)
        return record if condition(record, "Promoted") else None

    checkpoint = eventually("the Checkpoint has its verdict", judged)
    assert "evaluate" in kubelet.started

    machine = Machine(tmp_path / "local", monkeypatch)
    machine.outcomes["evaluate"] = [succeed if passes else score_badly]
    (machine.folder / "rows").mkdir()
    (machine.folder / "run.yaml").write_text(yaml.safe_dump_all(objects))
    code = machine.run("--configmap", f"tickets={machine.folder / 'rows'}", files=("run.yaml",))
    assert code == (0 if passes else 4)
    own_job = LocalBackend().get("FineTuneJob", "routing")
    assert own_job is not None
    own = LocalBackend().get("Checkpoint", own_job["status"]["evaluation"]["checkpoint"])
    assert own is not None

    assert verdict(own_job, own) == verdict(job, checkpoint)
