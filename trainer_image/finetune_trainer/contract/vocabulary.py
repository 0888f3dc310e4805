"""The words that messages are made of, without pydantic, so that the preparation of rows can read them."""

from typing import Final, Literal

RULE_VERSION: Final = 2
"""Newest version of the rules by which prepare reads and compares rows; docs/data.md has what each does."""
Stage = Literal["prepare", "preflight", "train", "evaluate"]
MethodType = Literal["LoRA", "QLoRA", "Full", "DPO", "KTO", "ORPO"]
PREFERENCE_METHODS: Final[frozenset[MethodType]] = frozenset({"DPO", "KTO", "ORPO"})
"""Methods that learn from judged answers; the others learn from the answers alone."""
CheckpointType = Literal["Adapter", "Full"]
DataFormat = Literal[
    "PromptCompletion",
    "ChatMessages",
    "CSV",
    "TSV",
    "Parquet",
    "Alpaca",
    "ShareGPT",
    "LabelStudio",
    "Doccano",
    "Preference",
    "KTO",
]
NearDuplicates = Literal["Off", "Keep", "Remove"]
Finding = Literal["Off", "Warn", "Redact", "Fail"]
Subject = Literal["Tuned", "Base"]
SplitName = Literal["train", "validation", "test"]
