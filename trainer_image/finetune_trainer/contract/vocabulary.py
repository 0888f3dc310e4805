"""The words that messages are made of, without pydantic, so that the preparation of rows can read them."""

from typing import Final, Literal

RULE_VERSION: Final = 2
"""Newest version of the rules by which prepare reads and compares rows; docs/data.md has what each does."""
Stage = Literal["prepare", "preflight", "train", "evaluate"]
CheckpointType = Literal["Adapter", "Full"]
ADAPTER: Final = "Adapter"
FULL_MODEL: Final = "Full"
"""Type of a Checkpoint with all weights of a model. The method that makes one has the same name."""
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
RowForm = Literal["PromptCompletion", "ChatMessages", "Preference", "KTO"]
"""How a row of a prepared dataset is written."""
