# SPDX-License-Identifier: Apache-2.0
"""Routes of vLLM that clients of an endpoint do not reach."""

from typing import Final

UNREACHABLE: Final = (
    "/invocations",
    "/ping",
    "/tokenize",
    "/metrics",
    "/docs",
    "/openapi.json",
    "/load",
    "/version",
    "/v1/load_lora_adapter",
    "/v1/responses",
    "/inference/v1/generate",
    "/scale_elastic_ep",
)
