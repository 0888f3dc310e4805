# SPDX-License-Identifier: Apache-2.0
"""Record what the real vLLM exports, for the tests of the recording rules.

python -m tests.peers.recordmetrics
"""

import tempfile
from pathlib import Path
from typing import Final

from tests.peers.test_vllm_pod import QUESTION, FetchedPod

SCRAPE: Final = Path(__file__).parents[1] / "recording" / "vllm-0.32.txt"


def main() -> None:
    """Answer a few requests, and write the scrape that follows."""
    with tempfile.TemporaryDirectory() as folder:
        pod = FetchedPod.with_router(Path(folder))
        with pod.server() as server:
            for model in ("base", "router"):
                server.chat(model, QUESTION, max_tokens=8)
            server.http.post("/v1/completions", json={"model": "absent", "prompt": "Hello"})
            SCRAPE.write_text(server.metrics())


if __name__ == "__main__":
    main()
