# SPDX-License-Identifier: Apache-2.0
"""`finetune check`: the same as `finetune-check`."""

from finetune_trainer.check.__main__ import check

__all__ = ["check"]
