# SPDX-License-Identifier: Apache-2.0
"""Start of a serving pod of vLLM that copies its model, and of one that reads it in the model cache."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from finetune_trainer.contract.serving import FetchConfig, FetchItem
from tools.bench.page import Sheet
from tools.bench.start.measure import forget, seconds_of
from tools.bench.start.serving import OWNER, ServedNamespace, ServingStart, sheet
from tools.peers.serving.servers import MODEL, ServersFolder, running

SIZE: Final = "1B"
ROUNDS: Final = 2


class VLLMNamespace(ServedNamespace):
    """A namespace whose serving pods have vLLM."""

    def fetch_config(self, *, in_cache: bool) -> FetchConfig:
        return FetchConfig(
            owner=OWNER,
            store=self.place,
            cache=self.cache if in_cache else None,
            items=(FetchItem(artifact=self.base, folder=MODEL, in_cache=in_cache),),
            destination=str(self.pod),
            engine="VLLM",
        )

    def seconds_to_first_token(self) -> float:
        folder = ServersFolder.fetched(self.pod)
        with running(folder.vllm(), folder.path) as server:
            return server.start_seconds


def measure_starts(root: Path) -> dict[str, Any]:
    """Starts of both kinds in turns, as JSON. `root`: an empty folder."""
    namespace = VLLMNamespace(SIZE, root)
    forget(namespace.weights)
    filled = seconds_of(namespace.fill_config)
    starts: dict[str, list[dict[str, float]]] = {"copied": [], "cached": []}
    for _ in range(ROUNDS):
        for kind, found in starts.items():
            found.append(asdict(namespace.start(in_cache=kind == "cached")))
    return {"filled": filled, **starts}


def starts_sheet(recorded: Mapping[str, Any]) -> Sheet:
    """The table of `measure_starts`."""
    starts: dict[tuple[str, bool], Sequence[ServingStart]] = {
        (SIZE, kind == "cached"): [ServingStart(**each) for each in recorded[kind]]
        for kind in ("copied", "cached")
    }
    return sheet(starts, {SIZE: recorded["filled"]}, "vLLM")
