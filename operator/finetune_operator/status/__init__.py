"""Pure: conditions, reasons, phases, progress."""
