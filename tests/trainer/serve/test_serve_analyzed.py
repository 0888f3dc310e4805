# SPDX-License-Identifier: Apache-2.0
"""An analysis of a rollout scores the answers of two real servers, whose models it knows by their digests."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from finetune_trainer.analyze import stage
from finetune_trainer.contract.analysis import AnalysisGateBound, AnalysisVerdict
from finetune_trainer.contract.configs import AnalysisProbe, AnalyzeConfig, ProbedModel
from finetune_trainer.contract.serving import ServedModel
from finetune_trainer.manifest import MANIFEST_NAME, Manifest
from finetune_trainer.rows import Row
from tests.trainer.serve.endpoint import Endpoint, serve_config, served_here
from tests.trainer.serve.models import Oracle
from tests.trainer.test_analyze import OWNER, Clock
from tests.trainer.workbench import Workbench

ANSWERS = AnalysisGateBound(metric="exact_match", min=0.8, max_decrease=0.1)
STABLE, OTHER = "tickets.v1", "summaries"
MAX_TOKENS = 4
"""Limit of the servers, because random models seldom end an answer."""


@contextmanager
def served(root: Path, models: Path, adapter: str) -> Iterator[tuple[Endpoint, tuple[str, ...]]]:
    """A server of an adapter under the name `tuned`, and the digests of what it fetched."""
    digests = []
    for source, folder in (("llama", "llama"), (f"llama-{adapter}", "tuned")):
        shutil.copytree(root / source, models / folder)
        manifest = Manifest.of(models / folder)
        (models / folder / MANIFEST_NAME).write_bytes(manifest.to_bytes())
        digests.append(manifest.digest)
    tuned = ServedModel(name="tuned", folder="tuned")
    with served_here(serve_config(models, models=(tuned,), max_tokens=MAX_TOKENS)) as endpoint:
        yield endpoint, tuple(digests)


@pytest.mark.parametrize(("adapter", "verdict"), [(STABLE, "Pass"), (OTHER, "Fail")])
def test_an_adapter_that_answers_otherwise_fails(
    tmp_path: Path, root: Path, oracle: Oracle, adapter: str, verdict: AnalysisVerdict
) -> None:
    bench = Workbench(tmp_path)
    rows = []
    for number in range(8):
        prompt = oracle.chat(f"order {number}?")
        answer = oracle.text(oracle.generate(STABLE, prompt, MAX_TOKENS)).strip()
        rows.append(Row.pair(f"order {number}?", answer))
    with (
        served(root, tmp_path / "stable", STABLE) as (stable, stable_digests),
        served(root, tmp_path / "new", adapter) as (new, digests),
    ):
        probe = AnalysisProbe(
            requests=8,
            min_rows=4,
            models=(ProbedModel(name="tuned", dataset=bench.dataset(rows[:1], test=rows)),),
            pods=(f"{new.url}/v1",),
            stable_pods=(f"{stable.url}/v1",),
            digests=digests,
            stable_digests=stable_digests,
        )
        config = AnalyzeConfig(
            owner=OWNER,
            run="e1",
            store=bench.store_config,
            pods=(f"{new.url}/metrics",),
            stable_pods=(f"{stable.url}/metrics",),
            gates=(ANSWERS,),
            duration_seconds=60,
            max_duration_seconds=60,
            min_requests=1,
            probe=probe,
        )
        result = stage.run(config, Clock().measuring())
    (figure,) = result.figures
    assert (result.verdict, result.problem) == (verdict, "")
    assert (figure.model, figure.stable) == ("tuned", 1)
    assert result.requests == result.stable_requests == figure.rows
