# SPDX-License-Identifier: Apache-2.0
"""A plugin for vLLM that asks Linux for the permission to use AMX tiles.

vLLM for CPUs selects its AMX kernel by CPUID alone. Without the permission the first request in bfloat16 ends
the engine with SIGILL. The module is copied into vLLM's environment.
"""


def register() -> None:
    """Ask for the permission, on a CPU that has AMX. vLLM calls it in each of its processes."""
    import torch

    if torch.cpu._is_amx_tile_supported():
        torch.cpu._init_amx()
