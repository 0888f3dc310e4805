# SPDX-License-Identifier: Apache-2.0
"""The kinds of the operator that this program was installed with, and their schemas.

`make generate` writes them from the operator's models, because importing these takes half a second.
"""

import json
from importlib.resources import files
from typing import Any, Final

Schema = dict[str, Any]

_DEFINITIONS: Final[dict[str, Any]] = json.loads(
    files("finetune_client.offline").joinpath("definitions.json").read_text(encoding="utf-8")
)
API_VERSION: Final[str] = _DEFINITIONS["apiVersion"]
GROUP: Final = API_VERSION.partition("/")[0]
SCHEMAS: Final[dict[str, Schema]] = _DEFINITIONS["schemas"]
"""By kind, in the order of the documentation. Without descriptions."""
