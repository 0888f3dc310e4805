# SPDX-License-Identifier: Apache-2.0
"""Detection of secrets and personal data in the texts of rows."""

from finetune_trainer.data.checks.scanner import Scanner

__all__ = ["Scanner"]
