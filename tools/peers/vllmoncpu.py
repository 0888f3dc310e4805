# SPDX-License-Identifier: Apache-2.0
"""Options and environment with which vLLM serves a small model on a CPU."""

from typing import Final

CPU_ARGUMENTS: Final = (
    "--enforce-eager",
    f"--kv-cache-memory-bytes={64 << 20}",
)
"""Arguments in addition to those of the operator. The defaults take minutes, or all memory of the machine."""
FLOAT32: Final = "--dtype=float32"
"""In bfloat16 a different order of sums changes greedy answers."""
CPU_VARIABLES: Final = {
    "HF_HUB_OFFLINE": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_NO_USAGE_STATS": "1",
    # Starts in half the time.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    # By default it binds threads to cores and keeps one core for itself.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    # Without a C++ compiler the first request for log probabilities ends the engine.
    "TORCHDYNAMO_DISABLE": "1",
}
