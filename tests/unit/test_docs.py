"""The documentation names everything that it says it names, and its links lead somewhere."""

import re
from pathlib import Path

import pytest
import yaml

from finetune_operator.api.finetunejob import FineTuneJob
from finetune_operator.metrics import Metrics, StateCollector
from finetune_operator.status.reasons import ConditionType, EventReason, Reason
from finetune_operator.status.reserved import not_implemented
from finetune_trainer.contract import FailureReason
from finetune_trainer.serve import metrics as serve
from finetune_trainer.train import metrics as train

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
LINK = re.compile(r"\]\((?!https?://|#|mailto:)([^)#\s]+)")


@pytest.mark.parametrize("name", sorted({*ConditionType, *Reason, *EventReason, *FailureReason}))
def test_the_page_on_conditions_explains_every_type_and_reason(name: str) -> None:
    assert re.search(rf"`{name}(=True)?`", (ROOT / "docs" / "conditions.md").read_text())


def test_the_page_on_metrics_has_every_metric() -> None:
    metrics = Metrics()
    metrics.registry.register(StateCollector([], depth=lambda: 0, ages=dict, active=lambda: True))
    registries = (metrics.registry, serve.Metrics().registry, train.Metrics().registry)
    families = [family for registry in registries for family in registry.collect()]
    named = {
        family.name + ("_total" if family.type == "counter" else "")
        for family in families
        if family.name.startswith("finetune_")
    }
    page = (ROOT / "docs" / "metrics.md").read_text()
    assert set(re.findall(r"`(finetune_\w+)`", page)) >= named


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_leads_to_a_file(page: Path) -> None:
    for target in LINK.findall(page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_run_in_the_readme_is_one_that_the_api_knows() -> None:
    _, _, rest = (ROOT / "README.md").read_text().partition("```yaml")
    manifest = yaml.safe_load(rest.partition("```")[0])
    job = FineTuneJob.model_validate(manifest)
    assert not_implemented(job.spec) == ()
