# SPDX-License-Identifier: Apache-2.0
"""Send rows to pods of both revisions, and keep the answers.

The operator has seen the addresses of the pods when the Job began. A pod that ends leaves its address to
another one, possibly of another namespace, which must get neither rows nor API keys. So an address gets a
request only if its metrics, read just before, name models by digests that only these pods know.
"""

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx

from finetune_trainer.analyze.podreader import MAX_PROBLEM_CHARACTERS, get_metrics
from finetune_trainer.analyze.probe import ChatRequest, ProbeRequest
from finetune_trainer.analyze.series import served_digests
from finetune_trainer.contract.configs import AnalysisProbe, AnalyzeConfig

REQUEST_SECONDS: Final = 60.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ProbeAnswers:
    """The answers of both revisions to one row, without white space around them; None without an answer."""

    model: str
    accepted: frozenset[str]
    new: str | None
    stable: str | None


@dataclass(frozen=True, slots=True)
class ProbedPod:
    """URLs of one pod."""

    metrics: str
    api: str


class ProbedPods:
    """Pods of one revision that get requests in turn."""

    def __init__(
        self,
        pods: Sequence[ProbedPod],
        digests: Sequence[str],
        client: httpx.Client,
        headers: Mapping[str, str],
    ) -> None:
        """Take the pods of a revision.

        Args:
            pods: the pods.
            digests: digests of the models that they have.
            client: client for metrics and answers.
            headers: headers of requests, with the API key if one is needed.
        """
        self._pods = list(pods)
        self._digests = frozenset(digests)
        self._client = client
        self._headers = headers
        self._sent = 0
        self.problem = ""
        """Why the last request without an answer had none; empty if all were answered."""

    def ask(self, request: ChatRequest) -> str | None:
        """The answer of the next pod; None without one. A pod that is not of the revision gets no more."""
        while self._pods:
            pod = self._pods[self._sent % len(self._pods)]
            try:
                digests = served_digests(get_metrics(self._client, pod.metrics))
                if not digests or not digests <= self._digests:
                    self._pods.remove(pod)
                    self._report(pod, "it does not show the models of the revision, so it gets no rows")
                    continue
                self._sent += 1
                return self._answer(pod, request)
            except (httpx.HTTPError, ValueError, LookupError, TypeError, AttributeError) as error:
                self._sent += 1
                self._report(pod, f"{type(error).__name__}: {error}")
                return None
        return None

    def _report(self, pod: ProbedPod, why: str) -> None:
        self.problem = f"{pod.api}: {why}"[:MAX_PROBLEM_CHARACTERS]
        logger.warning("%s", self.problem)

    def _answer(self, pod: ProbedPod, request: ChatRequest) -> str:
        response = self._client.post(
            f"{pod.api}/chat/completions", json=request, headers=self._headers, timeout=REQUEST_SECONDS
        )
        response.raise_for_status()
        content: str | None = response.json()["choices"][0]["message"]["content"]
        return (content or "").strip()


@dataclass(frozen=True, slots=True)
class BothRevisions:
    """Pods of both revisions that get the same rows."""

    new: ProbedPods
    stable: ProbedPods
    executor: Executor

    @classmethod
    def of(
        cls, config: AnalyzeConfig, probe: AnalysisProbe, client: httpx.Client, executor: Executor
    ) -> "BothRevisions":
        """The pods of a config."""
        headers = {}
        if probe.api_keys_path is not None:
            headers["Authorization"] = f"Bearer {_first_key(Path(probe.api_keys_path))}"

        def pods(metrics: Sequence[str], apis: Sequence[str], digests: Sequence[str]) -> ProbedPods:
            both = [ProbedPod(*urls) for urls in zip(metrics, apis, strict=True)]
            return ProbedPods(both, digests, client, headers)

        return cls(
            pods(config.pods, probe.pods, probe.digests),
            pods(config.stable_pods, probe.stable_pods, probe.stable_digests),
            executor,
        )

    def ask(self, request: ProbeRequest) -> ProbeAnswers:
        """Send a row to a pod of each revision at the same time."""
        new, stable = self.executor.map(lambda pods: pods.ask(request.body), (self.new, self.stable))
        return ProbeAnswers(request.model, request.accepted, new, stable)


def _first_key(folder: Path) -> str:
    """The first API key in a mounted Secret; empty if there is none, which the servers refuse."""
    files = sorted(each for each in folder.iterdir() if each.is_file() and not each.name.startswith("."))
    return files[0].read_text(encoding="utf-8").strip() if files else ""
