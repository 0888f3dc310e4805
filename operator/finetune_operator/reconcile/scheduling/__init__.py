"""When objects are reconciled: what a change concerns, and which passes must not overlap."""
