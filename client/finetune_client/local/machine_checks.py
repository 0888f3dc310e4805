# SPDX-License-Identifier: Apache-2.0
"""What this machine lacks for a run, found before a download or a load."""

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Final

from finetune_client.errors import OperationError, ProgramExit
from finetune_client.local.kubelet import VolumeFolders
from finetune_client.local.profile import Machine
from finetune_operator.api.pod_resources import CPU
from finetune_operator.observe.pod_status import has_condition
from finetune_operator.plan import Manifest
from finetune_operator.status.reasons import ConditionType
from finetune_trainer.contract.accelerators import GIBIBYTE

INSTALL: Final = "uv pip install --torch-backend auto 'finetune-operator[local]'"


def check_trainer() -> None:
    """Refuse a run where the trainer's libraries are missing.

    Raises:
        OperationError: with the command that installs them.
    """
    missing = [name for name in ("torch", "transformers", "peft") if find_spec(name) is None]
    if missing:
        raise OperationError(
            f"local runs need {', '.join(missing)}, which this environment does not have. Install:",
            commands=[INSTALL],
            exit_code=ProgramExit.INVALID,
        )


def check_model(objects: Sequence[Manifest], volumes: VolumeFolders, machine: Machine) -> None:
    """Refuse a base model in a folder whose weights alone are larger than the memory of this machine.

    Raises:
        OperationError: it is.
    """
    for manifest in objects:
        uri = str(((manifest.get("spec") or {}).get("baseModel") or {}).get("uri", ""))
        scheme, _, rest = uri.partition("://")
        claim, _, path = rest.partition("/")
        if scheme != "pvc" or claim not in volumes.claims:
            continue
        weights = sum(each.stat().st_size for each in (volumes.claims[claim] / path).glob("*.safetensors"))
        if weights > machine.memory_bytes:
            raise _too_large(uri, weights, machine.memory_bytes)


def check_memory(run: Manifest, machine: Machine) -> None:
    """Refuse training whose predicted memory this machine does not have.

    Raises:
        OperationError: before the weights are loaded.
    """
    prediction = run.get("status", {}).get("prediction")
    if machine.resource != CPU or prediction is None or has_condition(run, ConditionType.TRAINED, "True"):
        return
    if prediction["deviceMemoryBytes"] > machine.memory_bytes:
        name = f"FineTuneJob {run['metadata']['name']}: training"
        raise _too_large(name, prediction["deviceMemoryBytes"], machine.memory_bytes)


def _too_large(what: str, needed: int, available: int) -> OperationError:
    return OperationError(
        f"{what} needs {needed / GIBIBYTE:.1f} GiB of memory, and this machine has"
        f" {available / GIBIBYTE:.1f} GiB: use a smaller model, a smaller maxSequenceLength, or another"
        " machine. --profile FILE --until preflight shows whether another one has enough",
        exit_code=ProgramExit.INVALID,
    )
