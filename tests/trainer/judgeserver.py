# SPDX-License-Identifier: Apache-2.0
"""An OpenAI-compatible endpoint whose model is a function of the test."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from typing_extensions import override

from tests.trainer.remote.webserver import Answer, Seen, WebServer
from tools.cluster.credentials import Authority


@dataclass(frozen=True)
class Asked:
    """A call as the judge reads it."""

    body: dict[str, Any]
    first: str
    second: str

    @property
    def system(self) -> str:
        text: str = self.body["messages"][0]["content"]
        return text

    @classmethod
    def of(cls, seen: Seen) -> "Asked":
        body = json.loads(seen.body)
        shown = json.loads(body["messages"][1]["content"])
        return cls(body, shown["answer A"], shown["answer B"])


Opinion = Callable[[Asked], str]


def verdict(better: str, reason: str = "because") -> str:
    return json.dumps({"better": better, "reason": reason})


def likes(*words: str) -> Opinion:
    """Prefer the answer with the first of these words, wherever it is."""

    def opinion(asked: Asked) -> str:
        for word in words:
            found = [place for place, text in (("A", asked.first), ("B", asked.second)) if word in text]
            if len(found) == 1:
                return verdict(found[0])
        return verdict("tie")

    return opinion


class JudgeServer(WebServer):
    """Replies to `/v1/chat/completions` what `opinion` says."""

    def __init__(self, opinion: Opinion, authority: Authority | None = None) -> None:
        super().__init__(authority)
        self.opinion = opinion
        self.models: list[str] = []
        self.passes = 1
        """One of this many requests is answered, the others get 429."""

    @property
    def url(self) -> str:
        return f"{self.endpoint}/v1"

    @property
    def asked(self) -> list[Asked]:
        return [Asked.of(seen) for seen in self.seen]

    @override
    def answer(self, asked: Seen) -> Answer:
        if (asked.method, asked.path) == ("GET", "/v1/models") and self.models:
            return Answer(json.dumps({"data": [{"id": model} for model in self.models]}).encode())
        if (asked.method, asked.path) != ("POST", "/v1/chat/completions"):
            return Answer(status=404)
        if len(self.seen) % self.passes:
            return Answer(status=429)
        reply = {"choices": [{"message": {"role": "assistant", "content": self.opinion(Asked.of(asked))}}]}
        return Answer(json.dumps(reply).encode())
