# SPDX-License-Identifier: Apache-2.0
"""Check that the CustomResourceDefinitions in the cluster have all fields of this release.

Definitions have a chart of their own, which may be older than the operator. With older definitions the API
server refuses every status with a new field. So this process neither becomes ready nor acquires the Lease,
and a rollout keeps the previous operator.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from functools import cache
from typing import Final

from finetune_operator.api.crd import KINDS, Kind, build_crd
from finetune_operator.api.meta import GROUP, VERSION
from finetune_operator.engine.client import KubernetesClient
from finetune_operator.engine.errors import Rejected, Unavailable
from finetune_operator.engine.resources import DEFINITION
from finetune_operator.plan import Manifest

RECHECK_SECONDS: Final = 5.0
MAX_NAMES_IN_MESSAGE: Final = 3
UPGRADE_ADVICE: Final = (
    "upgrade the chart finetune-operator-crds, or kubectl apply --server-side --force-conflicts -f crds/"
)

logger = logging.getLogger(__name__)


class Definitions:
    """The installed definitions of the operator's kinds."""

    def __init__(self, cluster: KubernetesClient) -> None:
        self._cluster = cluster
        self._outdated: tuple[str, ...] | None = None

    @property
    def outdated(self) -> tuple[str, ...] | None:
        """What is missing, one text per outdated definition; None before the first check."""
        return self._outdated

    async def wait_until_current(self) -> None:
        """Return when the cluster has the definitions of this release, or of a later one."""
        while True:
            try:
                found = tuple([each async for each in self._outdated_definitions()])
            except Unavailable as error:
                logger.warning("cannot read the CustomResourceDefinitions: %s", error)
            except Rejected as error:
                logger.warning(
                    "the operator may not read CustomResourceDefinitions, so it cannot check whether they are"
                    " outdated; the chart's roles grant this right: %s",
                    error,
                )
                self._outdated = ()
                return
            else:
                if found and found != self._outdated:
                    logger.error(
                        "waiting for the CustomResourceDefinitions of this release. %s: %s",
                        "; ".join(found),
                        UPGRADE_ADVICE,
                    )
                self._outdated = found
                if not found:
                    return
            await asyncio.sleep(RECHECK_SECONDS)

    async def _outdated_definitions(self) -> AsyncIterator[str]:
        for kind in KINDS:
            name = f"{kind.plural}.{GROUP}"
            installed = await self._cluster.get(DEFINITION, "", name)
            if installed is None:
                yield f"{name} is not installed"
                continue
            missing = sorted(find_missing(_schema(installed), _wanted(kind)))
            if missing:
                more = (
                    f" and {len(missing) - MAX_NAMES_IN_MESSAGE} more"
                    if len(missing) > MAX_NAMES_IN_MESSAGE
                    else ""
                )
                yield f"{name} is outdated: it lacks {', '.join(missing[:MAX_NAMES_IN_MESSAGE])}{more}"


def find_missing(installed: Manifest, wanted: Manifest, path: str = "") -> Iterator[str]:
    """Paths of fields and enum values that `wanted` has and `installed` lacks."""
    values: list[str] = wanted.get("enum", [])
    yield from (f"{path}={value}" for value in values if value not in installed.get("enum", values))
    known = installed.get("properties", {})
    for name, part in wanted.get("properties", {}).items():
        where = f"{path}.{name}" if path else name
        if name not in known:
            yield where
        else:
            yield from find_missing(known[name], part, where)
    for inner in ("items", "additionalProperties"):
        if isinstance(wanted.get(inner), dict) and isinstance(installed.get(inner), dict):
            yield from find_missing(installed[inner], wanted[inner], f"{path}[]")


@cache
def _wanted(kind: Kind) -> Manifest:
    return _schema(build_crd(kind))


def _schema(definition: Manifest) -> Manifest:
    """Schema of this API version; empty if the definition does not have it."""
    versions = definition["spec"]["versions"]
    found: Manifest = next(
        (each["schema"]["openAPIV3Schema"] for each in versions if each["name"] == VERSION), {}
    )
    return found
