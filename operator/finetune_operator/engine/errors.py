"""What can go wrong with the API server. There are three answers: look again, tell the user, wait."""

from finetune_operator.plan import Manifest


class ApiError(Exception):
    """A request that was not carried out; `str()` is the API server's own message."""


class Conflict(ApiError):
    """The cluster is not as it was seen: look again."""


class AlreadyExists(Conflict):
    """The name is taken; by whom is for the caller to find out."""


class Rejected(ApiError):
    """The API server refuses; only a change by somebody helps.

    Attributes:
        code: HTTP status, 4xx.
        reason: the API server's, such as `Forbidden` or `Invalid`.
        message: the API server's, for the user to read.
        causes: reasons of the causes, such as `NamespaceTerminating` or `FieldValueInvalid`.
    """

    def __init__(self, code: int, reason: str, message: str, causes: frozenset[str] = frozenset()) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message
        self.causes = causes

    @property
    def is_for_terminating_namespace(self) -> bool:
        """Whether it was refused only because the whole namespace is being deleted."""
        return "NamespaceTerminating" in self.causes


class Undeclared(Rejected):
    """The installed definition of the object's kind lacks a field that was written.

    The API server answers an apply with such a field by 500 (kubernetes#139253).
    """


class Unavailable(ApiError):
    """The API server cannot answer now, or could not be reached: wait and try again.

    Attributes:
        retry_after: seconds that the server asked to wait, if it did.
    """

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class NotActive(Unavailable):
    """A write that was not sent: this process cannot be sure to hold the Lease."""


class NameConflict(Exception):
    """An object that should be created exists and is somebody else's.

    Attributes:
        existing: the foreign object.
    """

    def __init__(self, existing: Manifest) -> None:
        metadata = existing["metadata"]
        self.existing = existing
        super().__init__(
            f"{existing['kind']} {metadata['name']} exists and belongs to somebody else:"
            f" delete or rename it (kubectl get {existing['kind'].lower()} {metadata['name']}"
            f" -n {metadata.get('namespace', '')} -o yaml shows whose it is)"
        )


class Gone(Exception):
    """The object that a pass was about does not exist any more, or is another one of the same name."""
