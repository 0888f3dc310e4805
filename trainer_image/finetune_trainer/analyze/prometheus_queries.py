# SPDX-License-Identifier: Apache-2.0
"""Evaluate the queries of the user for both revisions."""

import asyncio
import logging
import math
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote, urlencode

from finetune_trainer.contract.analysis import PrometheusQuery, PrometheusSource
from finetune_trainer.remote.credentials import load_credentials
from finetune_trainer.remote.json_api import JsonApi, advise
from finetune_trainer.remote.retries import Unreachable

QUERY_SECONDS: Final = 30.0
"""Max duration of one attempt of one query."""
ATTEMPTS: Final = 3
LOOK_SECONDS: Final = 60.0
"""Max duration of all queries of one look."""
MAX_PROBLEM_LENGTH: Final = 600
"""Max characters of a problem. The message of a server has at most 300 of them."""
PLACEHOLDER: Final = re.compile(r"\{\{ ?(\w+) ?\}\}")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class QueriedValues:
    """Values of a query for both revisions; None if Prometheus has no data, or was not queried."""

    new: float | None = None
    stable: float | None = None


class UnusableResponse(Exception):
    """A response whose value is not one number. The text describes it, and what to do."""


class PrometheusReader:
    """Queries of the user, evaluated again at each reading."""

    def __init__(
        self,
        source: PrometheusSource,
        compared: Collection[str],
        now: Callable[[], float],
        *,
        is_stable_past: bool,
    ) -> None:
        """Begin a measurement.

        Args:
            source: the Prometheus and the queries.
            compared: metrics whose gates need the value of the stable revision.
            now: the time, in seconds since 1970.
            is_stable_past: whether the stable revision gets no more requests, so that its queries are
                evaluated at the start of the measurement.

        Raises StageFailure (INVALID_CONFIG, INVALID_CREDENTIALS).
        """
        self._source, self._compared, self._now = source, compared, now
        credentials = load_credentials(source.credentials)
        self._api = JsonApi(source.address, credentials, attempt_seconds=QUERY_SECONDS)
        self._began = now()
        self._is_stable_past = is_stable_past
        self.values: Mapping[str, QueriedValues] = {}
        """Values at the last reading, by metric."""
        self.problem = ""
        """Why a query had no value at the last reading; empty if all had one."""

    def read(self) -> None:
        """Evaluate all queries."""
        self.problem = ""
        self.values = asyncio.run(self._read())

    async def _read(self) -> dict[str, QueriedValues]:
        now = self._now()
        interval = f"{max(round(now - self._began), 1)}s"
        deadline = asyncio.get_running_loop().time() + LOOK_SECONDS
        async with self._api as api:

            async def value(query: PrometheusQuery, revision: str, time: float) -> float | None:
                try:
                    async with asyncio.timeout_at(deadline):
                        return await self._value(api, query, revision, interval, time)
                except TimeoutError:
                    self._note(
                        query,
                        revision,
                        f"no response within {LOOK_SECONDS:g} s; simplify the queries",
                    )
                    return None

            async def both(query: PrometheusQuery) -> QueriedValues:
                source = self._source
                new = await value(query, source.revision, now)
                if query.metric not in self._compared:
                    return QueriedValues(new)
                at = self._began if self._is_stable_past else now
                return QueriedValues(new, await value(query, source.stable_revision, at))

            found = await asyncio.gather(*map(both, self._source.queries))
        return {query.metric: values for query, values in zip(self._source.queries, found, strict=True)}

    async def _value(
        self, api: JsonApi, query: PrometheusQuery, revision: str, interval: str, time: float
    ) -> float | None:
        """The value for one revision; None, with a problem, if there is none."""
        source = self._source
        values = {
            "revision": revision,
            "endpoint": source.endpoint,
            "namespace": source.namespace,
            "interval": interval,
        }
        expression = PLACEHOLDER.sub(lambda found: values.get(found[1], found[0]), query.query)
        parameters = urlencode({"query": expression, "time": f"{time:.3f}"}, quote_via=quote)
        try:
            response = await api.get(f"api/v1/query?{parameters}", attempts=ATTEMPTS)
            return parse_number(response)
        except Unreachable as error:
            advice = advise(error.problem, source.credentials, "correct the query, or the address")
            why = f"{error.problem.text}; {advice}"
        except UnusableResponse as error:
            why = str(error)
        self._note(query, revision, why)
        logger.warning("the query was: %s", expression)
        return None

    def _note(self, query: PrometheusQuery, revision: str, why: str) -> None:
        self.problem = f"{query.metric} of {revision}: {self._source.address}: {why}"[:MAX_PROBLEM_LENGTH]
        logger.warning("%s", self.problem)


def parse_number(response: Any) -> float:
    """The value of a response of `/api/v1/query`. Raises UnusableResponse unless it is one finite number."""
    try:
        kind, found = response["data"]["resultType"], response["data"]["result"]
        if kind == "vector":
            found = _only(found)["value"]
        elif kind != "scalar":
            raise UnusableResponse(f"the query is a {kind}: write one that is a number")
        value = float(found[1])
    except (LookupError, OverflowError, TypeError, ValueError) as error:
        raise UnusableResponse("the response is not that of a Prometheus: check the address") from error
    if not math.isfinite(value):
        raise UnusableResponse(f"the query has the value {value}: there may be no requests to divide by")
    return value


def _only(series: Any) -> Any:
    if not series:
        raise UnusableResponse("the query has no data: check its labels, and whether they are scraped")
    if len(series) > 1:
        raise UnusableResponse(
            f"the query has {len(series)} series: aggregate them to one, for example by sum()"
        )
    return series[0]
