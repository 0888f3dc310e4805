"""What ends a training that cannot succeed: memory that ran out, a step that hangs."""
