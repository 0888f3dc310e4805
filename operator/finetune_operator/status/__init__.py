"""Pure rules about statuses: conditions, reasons, progress and reserved fields."""
