"""Guards that end training that cannot succeed: memory is exhausted, a step hangs."""
