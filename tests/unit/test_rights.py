"""What the end-to-end tests excuse: rights that the chart grants and that no audit log need show."""

import pytest

from hack.cluster.toolchain import HELM
from tests import rights


def test_only_rights_that_the_chart_grants_are_excused() -> None:
    if not HELM.folder.exists():
        pytest.skip("there is no helm: run `make verify`")
    granted = {str(right) for right in rights.granted(rights.rendered("finetune-system"))}
    assert granted >= rights.UNSEEN | rights.SELDOM
