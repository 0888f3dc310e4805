# SPDX-License-Identifier: Apache-2.0
"""Types, bounds, patterns, enums and required fields, each with valid and invalid values."""

import pytest

from finetune_operator.api.crd import KINDS, Kind
from tests.integration.api import Api
from tests.integration.rules import files
from tests.integration.rules.requests import try_create
from tests.integration.rules.schema import Demand, demands, fields, occurring, spec_schema

DEMANDS = [demand for kind in KINDS for demand in demands(kind, files.complete(kind))]


@pytest.mark.parametrize("demand", DEMANDS, ids=str)
def test_a_value_beyond_the_bound_is_refused_and_one_at_the_bound_is_not(api: Api, demand: Demand) -> None:
    refused = try_create(api, demand.example_with(demand.breach.refused))
    assert refused.status == 422
    assert refused.messages_of(demand.field), refused.message
    for message in demand.breach.advice:
        assert message in refused.message

    for value in demand.breach.accepted:
        verdict = try_create(api, demand.example_with(value))
        assert verdict.accepted or verdict.causes
        complaints = [
            message
            for message in verdict.messages_of(demand.field)
            if not message.endswith(demand.breach.around)
        ]
        assert not complaints, verdict.message


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_the_complete_examples_have_every_field(kind: Kind) -> None:
    schema = spec_schema(kind)
    shown = {path for example in files.complete(kind) for path in occurring(schema, example["spec"], "spec")}
    missing = {path for path, _ in fields(schema, "spec")} - shown
    assert not missing, f"add them to tests/integration/rules/{kind.name.lower()}/complete.yaml"


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_every_pattern_of_a_spec_comes_with_advice(kind: Kind) -> None:
    silent = [
        path
        for path, schema in fields(spec_schema(kind), "spec")
        if "pattern" in schema and "x-kubernetes-validations" not in schema
    ]
    assert not silent, "use pattern_advice beside the pattern: the API server names the bare expression only"
