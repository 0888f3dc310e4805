# SPDX-License-Identifier: Apache-2.0
"""Responses of the API server without the requested object: errors, and refusals of optional types.

Callers of a failed request reconcile again, report to the user, or wait. A refusal takes the place of an
object of a type that the cluster lacks, or that the operator may not read.
"""

from finetune_operator.plan import Manifest


def refusal(code: int, message: str) -> Manifest:
    """The response in place of an object of an optional type that cannot be read."""
    return {"apiVersion": "v1", "kind": "Status", "metadata": {}, "code": code, "message": message}


def is_refusal(found: Manifest | None) -> bool:
    """Whether a response says that the type cannot be read."""
    return found is not None and found["kind"] == "Status"


class ApiError(Exception):
    """A failed request; `str()` is the API server's message."""


class Conflict(ApiError):
    """The object differs from the one that was read: reconcile again."""


class AlreadyExists(Conflict):
    """An object of that name exists. It may be the wanted one: the caller has to check."""


class Rejected(ApiError):
    """The API server refuses the request, and would refuse it again until a user or administrator acts.

    Attributes:
        code: HTTP status, 4xx.
        reason: reason that the API server gives, such as `Forbidden` or `Invalid`.
        message: message of the API server, for users.
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
        """Whether the request was refused only because its namespace is being deleted."""
        return "NamespaceTerminating" in self.causes


class Undeclared(Rejected):
    """The installed CustomResourceDefinition lacks a field that was written.

    The API server answers an apply of such a field with 500 (kubernetes#139253).
    """


class Unavailable(ApiError):
    """The API server is overloaded or not reachable: wait and try again.

    Attributes:
        retry_after_seconds: time to wait, if the server sent one.
    """

    def __init__(self, message: str, retry_after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class PageTooLarge(ApiError):
    """The response of a list is larger than the process reads at once: request fewer objects."""


class NotActive(Unavailable):
    """A write that was not sent, because this process may not hold the Lease any more."""


class NameConflict(Exception):
    """An object to create exists already and has another owner.

    Attributes:
        existing: object of the other owner.
    """

    def __init__(self, existing: Manifest) -> None:
        metadata = existing["metadata"]
        self.existing = existing
        super().__init__(
            f"{existing['kind']} {metadata['name']} exists and has another owner:"
            f" delete or rename it (kubectl get {existing['kind'].lower()} {metadata['name']}"
            f" -n {metadata.get('namespace', '')} -o yaml shows the owner)"
        )


class Gone(Exception):
    """The reconciled object does not exist any more, or another object has its name."""
