"""What stops a measurement."""


class BenchError(Exception):
    """Nothing can be measured; the message says what did not happen."""
