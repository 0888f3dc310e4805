"""What a command of this package fails with when the cause is outside its code."""


class ClusterError(Exception):
    """The message is one for the user: what is wrong and what to do next."""
