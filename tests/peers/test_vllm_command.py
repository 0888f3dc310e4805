# SPDX-License-Identifier: Apache-2.0
"""The command that the operator builds for vLLM: vLLM's own parser reads each option as it is meant."""

import json
import os
import subprocess
from typing import Any, Final

import pytest

from finetune_operator.manifests.engines.vllm import LORA_RANKS, MANAGED
from tests.unit.operator.endpoints import checkpoint
from tests.unit.operator.test_endpoint_vllm import OTHER, ROUTER, cluster_of, command_of, lineage
from tools.peers import vllm

pytestmark = pytest.mark.skipif(not vllm.is_installed(), reason="make test-peers installs vLLM for CPUs")

PARSE: Final = """
import json, sys
from typing import get_args
from vllm.config.lora import MaxLoRARanks
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser

def plain(value):
    return vars(value) if hasattr(value, "__dict__") else str(value)

parser = make_arg_parser(FlexibleArgumentParser())
read = [vars(parser.parse_args(command[2:])) for command in json.load(sys.stdin)]
options = sorted(name for action in parser._actions for name in action.option_strings)
print(json.dumps({"read": read, "ranks": get_args(MaxLoRARanks), "options": options}, default=plain))
"""
SETTINGS: Final[dict[str, Any]] = {
    "contextLength": 8192,
    "maxTokens": 512,
    "maxConcurrentRequests": 32,
    "maxQueuedRequests": 96,
    "requestDeadlineSeconds": 300,
    "defaultSampling": {"temperature": 0, "topP": 0.5},
    "toolCallParser": "hermes",
    "extraEngineArguments": ["--kv-cache-dtype=fp8", "--enforce-eager"],
}
EXPECTED: Final[dict[str, Any]] = {
    "model_tag": "/mnt/models/base",
    "served_model_name": ["base"],
    "enable_lora": True,
    "max_loras": 2,
    "max_cpu_loras": 2,
    "max_lora_rank": 32,
    "chat_template": "/mnt/models/.vllm/chat_template.jinja",
    "generation_config": "/mnt/models/.vllm",
    "default_chat_template_kwargs": {"enable_thinking": False},
    "reasoning_parser": "qwen3",
    "enable_auto_tool_choice": True,
    "tool_call_parser": "hermes",
    "max_model_len": 8192,
    "max_num_seqs": 32,
    "limit_mm_per_prompt": {"audio": 0, "image": 0, "video": 0},
    "allowed_media_domains": ["none.invalid"],
    "max_num_queued_reqs": 128,
    "override_generation_config": {"temperature": 0, "top_p": 0.5, "max_new_tokens": 512},
    "tensor_parallel_size": 2,
    "port": 8000,
    "middleware": ["finetune_trainer.serve.vllm.middleware.EndpointMiddleware"],
    "shutdown_timeout": 300,
    "kv_cache_dtype": "fp8",
    "enforce_eager": True,
}


@pytest.fixture(scope="module")
def parsed() -> Any:
    """What vLLM reads from a command with all settings and one with none, and the names that it knows."""
    same = {"chatTemplateKwargs": {"enable_thinking": False}, "reasoningParser": "qwen3"}
    full = cluster_of(
        checkpoint("second", "2", promoted=None, **lineage(adapter={"r": 32}, **same)),
        first={"adapter": {"r": 8}, **same},
        on={"serving": {"engine": "VLLM", "allowedEngineArguments": ["--kv-cache-dtype", "--enforce-eager"]}},
        models=[ROUTER, OTHER],
        compute={"devices": 2},
        serving=SETTINGS,
    )
    commands = [command_of(full), command_of(cluster_of())]
    done = subprocess.run(
        [vllm.environment() / "bin" / "python", "-c", PARSE],
        input=json.dumps(commands),
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"},
    )
    return json.loads(done.stdout.splitlines()[-1])


def test_vllm_reads_each_setting(parsed: Any) -> None:
    read, _ = parsed["read"]
    assert {name: read[name] for name in EXPECTED} == EXPECTED
    assert [(each["name"], each["path"]) for each in read["lora_modules"]] == [
        ("router", "/mnt/models/router"),
        ("other", "/mnt/models/other"),
    ]


def test_without_settings_the_context_is_what_fits_into_memory(parsed: Any) -> None:
    _, read = parsed["read"]
    assert (read["max_model_len"], read["max_num_queued_reqs"], read["reasoning_parser"]) == (-1, None, "")


def test_vllm_has_the_ranks_and_the_options_that_the_operator_knows(parsed: Any) -> None:
    assert tuple(parsed["ranks"]) == LORA_RANKS
    assert {f"--{name}" for name in MANAGED} <= set(parsed["options"])
