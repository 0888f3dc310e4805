# SPDX-License-Identifier: Apache-2.0
"""What the API server refuses, with a message that names the field and says what to do."""

import pytest

from finetune_operator.api.crd import KINDS, Kind
from finetune_operator.api.meta import pattern_rule
from tests.integration.api import Api
from tests.integration.rules import files
from tests.integration.rules.files import Refusal
from tests.integration.rules.requests import try_create, without_indexes
from tests.integration.rules.schema import Schema, fields, root_schema

CASES = [case for kind in KINDS for case in files.refusals(kind)]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_mistake_is_refused_with_its_field_and_the_correction_is_accepted(api: Api, case: Refusal) -> None:
    refused = try_create(api, case.given)
    assert refused.status == 422
    assert any(case.refused_with in message for message in refused.messages_of(case.field)), refused.message
    lenient = try_create(api, case.given, "Warn")
    assert lenient.causes == refused.causes, "a client without strict field validation reads the same"

    corrected = try_create(api, case.corrected)
    assert corrected.accepted, corrected.message
    case.kind.model.model_validate(corrected.obj)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_every_rule_except_patterns_has_a_case_that_it_refuses(kind: Kind) -> None:
    cases = files.refusals(kind)
    untested = [
        (field, rule["message"])
        for path, schema in fields(root_schema(kind)["properties"]["spec"], "spec")
        for rule in schema.get("x-kubernetes-validations", [])
        if "oldSelf" not in rule["rule"] and not _repeats_the_pattern(schema, rule)
        for field in [path + rule.get("fieldPath", "")]
        if not any(
            without_indexes(case.field) == field and case.refused_with in rule["message"] for case in cases
        )
    ]
    assert not untested, f"add cases to tests/integration/rules/{kind.name.lower()}/refused-rules.yaml"


def _repeats_the_pattern(schema: Schema, rule: dict[str, str]) -> bool:
    """Whether the rule words the pattern of its field; test_rules_bounds.py breaches every pattern."""
    return "pattern" in schema and rule == pattern_rule(schema["pattern"], rule["message"])
