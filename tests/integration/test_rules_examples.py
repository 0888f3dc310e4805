# SPDX-License-Identifier: Apache-2.0
"""The API server accepts every example."""

from pathlib import Path
from typing import Final

import pytest
import yaml

from finetune_operator.api.kinds import KINDS_BY_NAME
from tests.integration.api import Api, Object
from tests.integration.rules.requests import NAMESPACE, try_create
from tests.mergepatch import merged

EXAMPLES: Final = Path(__file__).parents[2] / "examples"
MANIFESTS: Final[dict[str, Object]] = {
    f"{path.relative_to(EXAMPLES)}:{manifest['metadata']['name']}": manifest
    for path in sorted(EXAMPLES.rglob("*.yaml"))
    for manifest in yaml.safe_load_all(path.read_text())
    if manifest["kind"] in KINDS_BY_NAME
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_the_api_server_accepts_an_example(api: Api, name: str) -> None:
    manifest = MANIFESTS[name]
    if KINDS_BY_NAME[manifest["kind"]].namespaced:
        manifest = merged(manifest, {"metadata": {"namespace": NAMESPACE}})

    verdict = try_create(api, manifest)

    assert verdict.accepted, verdict.message
