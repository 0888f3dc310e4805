"""Whether the rows are of the kind that the method learns from, and what their number decides."""

from collections.abc import Mapping
from typing import Final

from finetune_trainer.contract.method import Method, Preference
from finetune_trainer.contract.outcomes import FailureReason
from finetune_trainer.contract.vocabulary import PREFERENCE_METHODS, MethodType
from finetune_trainer.rows import Row, RowForm, SplitName
from finetune_trainer.runtime.failure import StageFailure

METHODS_OF: Final[Mapping[RowForm, tuple[MethodType, ...]]] = {
    "PromptCompletion": ("LoRA", "QLoRA", "Full"),
    "ChatMessages": ("LoRA", "QLoRA", "Full"),
    "Preference": ("DPO", "ORPO"),
    "KTO": ("KTO",),
}
NEEDED: Final[Mapping[MethodType, str]] = {
    "LoRA": "prompts and completions, or chats",
    "QLoRA": "prompts and completions, or chats",
    "Full": "prompts and completions, or chats",
    "DPO": "a prompt, a chosen and a rejected answer (format Preference)",
    "ORPO": "a prompt, a chosen and a rejected answer (format Preference)",
    "KTO": "a prompt, a completion and a label true or false (format KTO)",
}


def check_form(splits: Mapping[SplitName, list[Row]], method: MethodType) -> None:
    """Raise StageFailure (INVALID_CONFIG) for rows that the method does not train on."""
    form = next((rows[0].form for rows in splits.values() if rows), None)
    if form is None or method in METHODS_OF[form]:
        return
    raise StageFailure(
        FailureReason.INVALID_CONFIG,
        f"method.type: {method} learns from rows with {NEEDED[method]}, but the dataset's rows are of the"
        f" format {form}: choose method.type {_either(METHODS_OF[form])}, or another dataset",
    )


def check_processes(method: MethodType, nodes: int, devices: int) -> None:
    """Raise StageFailure (INVALID_CONFIG) for several processes of a method that trains in one."""
    if method in PREFERENCE_METHODS and nodes * devices > 1:
        field = "compute.nodes" if nodes > 1 else "compute.devices"
        raise StageFailure(
            FailureReason.INVALID_CONFIG,
            f"{field}: {nodes if nodes > 1 else devices}, but {method} trains in one process in this release:"
            " set compute.nodes and compute.devices to 1",
        )


def settle(method: Method, train: list[Row]) -> Preference | None:
    """The settings of a method that learns from judged answers, with what was left open; None for others.

    KTO's weights make both kinds count the same, whatever their number: desirable weight × good rows =
    undesirable weight × bad rows, as its paper recommends (Ethayarajh et al., 2024, equation 8). Of the kind
    with more rows the weight is 1.
    Raises StageFailure (INVALID_CONFIG) where KTO's rows are all of one kind.
    """
    if method.type in ("DPO", "ORPO"):
        return method.preference
    if method.type != "KTO":
        return None
    good = sum(row.label is True for row in train)
    bad = len(train) - good
    if not (good and bad):
        missing = "true" if bad else "false"
        raise StageFailure(
            FailureReason.INVALID_CONFIG,
            f"method.type: KTO learns from good and bad answers, but of the {len(train)} training rows none"
            f" has the label {missing}: add some, or train on the good answers with method.type LoRA",
        )
    given = method.preference
    desirable, undesirable = given.desirable_weight, given.undesirable_weight
    if desirable is None and undesirable is None:
        desirable, undesirable = (1.0, good / bad) if good > bad else (bad / good, 1.0)
    elif desirable is None and undesirable is not None:
        desirable = undesirable * bad / good
    elif undesirable is None and desirable is not None:
        undesirable = desirable * good / bad
    return given.model_copy(
        update={"desirable_weight": _rounded(desirable), "undesirable_weight": _rounded(undesirable)}
    )


def _either(methods: tuple[MethodType, ...]) -> str:
    *others, last = methods
    return f"{', '.join(others)} or {last}" if others else last


def _rounded(weight: float | None) -> float:
    return float(f"{weight or 0:.4g}")
