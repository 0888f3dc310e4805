# SPDX-License-Identifier: Apache-2.0
"""Names an encoding of rows: equal names mean equal tokens for equal rows."""

import hashlib
from importlib.metadata import version
from typing import Final

from finetune_trainer import canonical
from finetune_trainer.tokens.answers import Encoder
from finetune_trainer.tokens.tokenfiles import VERSION, kind_of

ENCODING_VERSION: Final = 2
"""Raise it with every change of `finetune_trainer.tokens` that changes the tokens or labels of a row."""
LIBRARIES: Final = ("tokenizers", "transformers", "trl")
"""Libraries that render or tokenize rows, or that have training templates."""


def encoding_name(encoder: Encoder) -> str:
    """SHA-256 of everything that the tokens depend on except the rows, as 64 hexadecimal digits.

    It is the same on each day, although some templates write the date of today.
    """
    tokenizer = encoder.tokenizer
    backend: str = tokenizer.backend_tokenizer.to_str()
    facts = {
        "versions": [VERSION, ENCODING_VERSION, *map(version, LIBRARIES)],
        "kind": kind_of(encoder),
        "tokenizer": hashlib.sha256(backend.encode()).hexdigest(),
        "special_tokens": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        "template": tokenizer.chat_template,
        "arguments": dict(encoder.chat_template_kwargs),
    }
    return hashlib.sha256(canonical.encode(facts)).hexdigest()
