"""What should not be learned: secrets and personal data, found in the texts of rows."""

from finetune_trainer.data.checks.scanner import Scanner

__all__ = ["Scanner"]
