# SPDX-License-Identifier: Apache-2.0
"""The operator's rights are those that it used while all other tests of this folder ran, in one lane or two.

They run as the last: see `pytest_collection_modifyitems` in conftest.py, and tools/suites/sessions.py.
"""

from pathlib import Path
from typing import Final

import pytest

from tests import rights
from tests.e2e.sessions import LaneSession, left_in, usage_of_all
from tests.rights import CLUSTER, NAMESPACES, OWN, RARELY_USED, SHADOWED, UNOBSERVABLE, RightsUsage
from tools.demo.admin_access import CONTEXT
from tools.demo.install import RELEASE, SYSTEM

HERE: Final = Path(__file__).parent
OPERATOR: Final = f"system:serviceaccount:{SYSTEM}:{RELEASE}"


@pytest.fixture(scope="module")
def operator(request: pytest.FixtureRequest, session: LaneSession) -> RightsUsage:
    """The rights that the operators of this session and of the earlier lanes used."""
    folder: Path | None = request.config.option.requests
    lanes = left_in(folder) if folder else []
    used = usage_of_all((session, *lanes), (path.name for path in HERE.glob("test_*.py")), OPERATOR)
    if used is None:
        pytest.skip("only the whole suite shows what is used")
    return used


pytestmark = pytest.mark.skipif(bool(CONTEXT), reason="the audit log is the local cluster's")


def test_nothing_that_the_operator_asked_for_was_refused_for_want_of_a_right(operator: RightsUsage) -> None:
    assert operator.refused == frozenset()


@pytest.mark.parametrize("role", [NAMESPACES, CLUSTER, OWN])
def test_the_operator_used_every_right_that_the_chart_grants_it(operator: RightsUsage, role: str) -> None:
    granted = {right for right in rights.granted(rights.rendered(SYSTEM)) if right.role == role}
    used = {right for right in operator.used if right.role == role}
    assert used <= granted
    assert {str(right) for right in granted - used} <= UNOBSERVABLE | RARELY_USED | SHADOWED.get(
        role, frozenset()
    )
