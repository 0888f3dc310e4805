# SPDX-License-Identifier: Apache-2.0
"""Fine-tuning from outside the cluster, or without one: the program `finetune`, and the same from Python.

Public are the names in `__all__`; they are imported when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from finetune_client.client import Client, Run
    from finetune_client.errors import OperationError, ProgramExit
    from finetune_client.outcome import Outcome, WaitFor

__all__ = ["Client", "OperationError", "Outcome", "ProgramExit", "Run", "WaitFor"]

_MODULES: Final = {
    "Client": "client",
    "Run": "client",
    "OperationError": "errors",
    "ProgramExit": "errors",
    "WaitFor": "outcome",
    "Outcome": "outcome",
}


def __getattr__(name: str) -> Any:
    module = _MODULES.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{module}"), name)
