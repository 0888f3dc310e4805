# SPDX-License-Identifier: Apache-2.0
"""The response in place of an object of a type that the cluster lacks, or that the operator may not read."""

from finetune_operator.plan import Manifest


def refusal(code: int, message: str) -> Manifest:
    """The response in place of an object of an optional type that cannot be read."""
    return {"apiVersion": "v1", "kind": "Status", "metadata": {}, "code": code, "message": message}


def is_refusal(found: Manifest | None) -> bool:
    """Whether a response says that the type cannot be read."""
    return found is not None and found["kind"] == "Status"
