# SPDX-License-Identifier: Apache-2.0
"""Names must be short enough for the names of children, and have no dots."""

import pytest

from finetune_operator.api.crd import KINDS, KINDS_BY_NAME, Kind
from finetune_operator.api.meta import NAME_LIMIT
from finetune_operator.api.run_template import RUN_MAKER_NAME_LIMIT
from tests.integration.api import Api
from tests.integration.rules import files
from tests.integration.rules.requests import Verdict, try_create
from tests.mergepatch import merged

USER_MADE = [kind for kind in KINDS if kind.name not in {"DatasetVersion", "Checkpoint"}]
RECORDS = [kind for kind in KINDS if kind not in USER_MADE]
LIMITS = dict.fromkeys(("FineTuneSchedule", "FineTuneSweep"), RUN_MAKER_NAME_LIMIT)
"""Max length of the names of kinds whose names begin the names of runs."""


def _named(api: Api, kind: Kind, name: str) -> Verdict:
    return try_create(api, merged(files.minimal(kind), {"metadata": {"name": name}}))


@pytest.mark.parametrize("kind", USER_MADE, ids=lambda kind: kind.name)
def test_the_longest_name_is_accepted_and_one_with_one_more_character_refused(api: Api, kind: Kind) -> None:
    limit = LIMITS.get(kind.name, NAME_LIMIT)
    assert _named(api, kind, "n" * limit).accepted
    refused = _named(api, kind, "n" * (limit + 1))
    assert refused.status == 422
    assert f"metadata.name of kind {kind.name} may have at most {limit} characters" in refused.message
    assert "shorten it" in refused.message


@pytest.mark.parametrize("kind", USER_MADE, ids=lambda kind: kind.name)
def test_a_name_with_a_dot_is_refused(api: Api, kind: Kind) -> None:
    refused = _named(api, kind, "tickets.v2")
    assert refused.status == 422
    assert f"metadata.name of kind {kind.name} must not have dots" in refused.message
    assert _named(api, kind, "tickets-v2").accepted


def test_an_endpoint_is_named_as_a_service_may_be(api: Api) -> None:
    kind = KINDS_BY_NAME["InferenceDeployment"]
    refused = _named(api, kind, "2-desks")
    assert not refused.accepted
    assert "must begin with a letter, because its Service has the same name" in refused.message
    assert _named(api, kind, "desks-2").accepted


@pytest.mark.parametrize("kind", RECORDS, ids=lambda kind: kind.name)
def test_a_record_may_have_the_longest_name_that_the_operator_makes(api: Api, kind: Kind) -> None:
    assert _named(api, kind, "n" * 63).accepted
