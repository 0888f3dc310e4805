# SPDX-License-Identifier: Apache-2.0
"""A file or folder that a stage reads over the network: its listing and its download."""

import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from finetune_trainer import canonical
from finetune_trainer.contract.references import SecretMount
from finetune_trainer.contract.vocabulary import ExitCode, FailureReason
from finetune_trainer.manifest import OnBytes, digest_of, ignore_bytes
from finetune_trainer.remote.credentials import valid_keys
from finetune_trainer.remote.download import Download
from finetune_trainer.remote.filesystem import open_filesystem
from finetune_trainer.remote.limits import MAX_DOWNLOAD_SECONDS, MAX_FILES
from finetune_trainer.remote.remotefiles import list_files
from finetune_trainer.remote.remotefolder import RemoteFile
from finetune_trainer.remote.remoteproblems import ProblemKind, RemoteProblem
from finetune_trainer.remote.retries import Retrier, Unreachable
from finetune_trainer.runtime.failure import StageFailure
from finetune_trainer.runtime.scrubbing import SCRUBBER


@dataclass(frozen=True, slots=True)
class SourceRequest:
    """A source or base model as the spec names it."""

    uri: str
    field: str
    """Field of the spec with `uri` and `credentialsSecretRef`, such as `sources[0]`."""
    credentials: SecretMount | None
    absent: FailureReason
    """Failure reason if nothing exists at the uri."""
    limit_bytes: int
    revision: str | None = None
    """Branch, tag or commit at the hub."""


class RemoteSource:
    """The content of a uri at the time of opening.

    Every error is a StageFailure that names the uri: ACCESS_DENIED, ADDRESS_REFUSED, INVALID_CREDENTIALS,
    SOURCE_TOO_LARGE, SOURCE_UNAVAILABLE, or the reason `absent` of the request. All methods may raise
    Preempted.
    """

    def __init__(self, request: SourceRequest, stop: threading.Event) -> None:
        self._request = request
        self._stop = stop
        self._deadline = time.monotonic() + MAX_DOWNLOAD_SECONDS
        SCRUBBER.add_uri(request.uri)
        folder = open_filesystem(request.uri, request.credentials)
        self._retrier = Retrier(folder, stop)
        self.revision: str | None = None
        """The commit at the hub; None elsewhere."""
        with self._errors_explained():
            if folder.scheme == "hf":
                from finetune_trainer.remote import hub

                folder, self.revision = self._retrier.call(lambda: hub.pin_revision(folder, request.revision))
            self._folder = folder
            self.files = self._retrier.call(lambda: list_files(folder))
        self.is_file = [file.path for file in self.files] == [folder.path]
        """Whether the uri names a file, not a folder."""

    @property
    def key(self) -> str | None:
        """Hash of server, uri and content: equal keys mean equal files. None without versions."""
        if self.revision is None and not all(file.version for file in self.files):
            return None
        listed = [[file.name, file.size_bytes, file.version] for file in self.files]
        content = canonical.encode([self._folder.endpoint, self._request.uri, self.revision or listed])
        return digest_of(content).removeprefix("sha256:")

    def version(self, files: Iterable[RemoteFile]) -> str | None:
        """Return a hash of some files by their versions or times; None if the server reports neither.

        Less strict than `key`: times replace missing versions.
        """
        listed = [[file.name, file.size_bytes, file.version or file.modified] for file in files]
        content = listed if all(version for _, _, version in listed) else self.revision
        if content is None:
            return None
        return digest_of(canonical.encode([self._folder.endpoint, self._request.uri, content]))

    def download(self, files: Iterable[RemoteFile], folder: Path, on_bytes: OnBytes = ignore_bytes) -> None:
        """Download files into a folder. Keeps files that are already complete.

        Raises OSError of the folder.
        """
        requested = list(files)
        limit_bytes = self._request.limit_bytes
        with self._errors_explained():
            total_bytes = sum(file.size_bytes or 0 for file in requested)
            if total_bytes > limit_bytes:
                raise Unreachable(RemoteProblem(ProblemKind.LIMIT, f"it has {total_bytes} bytes"))
            download = Download(self._folder, self._retrier, self._stop, limit_bytes, self._deadline)
            for file in requested:
                download.fetch(file, folder / file.name, on_bytes)

    @contextmanager
    def _errors_explained(self) -> Iterator[None]:
        try:
            yield
        except Unreachable as error:
            raise _failure(self._request, error.problem) from error


def _failure(request: SourceRequest, problem: RemoteProblem) -> StageFailure:
    reason, code, advice = (
        FailureReason.SOURCE_UNAVAILABLE,
        ExitCode.BAD_CONFIG,
        f"correct {request.field}.uri or its credentials",
    )
    match problem.kind:
        case ProblemKind.ABSENT:
            reason, advice = request.absent, f"check {request.field}.uri"
        case ProblemKind.DENIED:
            reason, advice = FailureReason.ACCESS_DENIED, _access_advice(request)
        case ProblemKind.FORBIDDEN_ADDRESS:
            reason, advice = FailureReason.ADDRESS_REFUSED, "use another server"
        case ProblemKind.UNTRUSTED:
            advice = (
                "add the certificate of its authority as key caBundle to the Secret of"
                f" {request.field}.credentialsSecretRef"
            )
        case ProblemKind.LIMIT:
            reason = FailureReason.SOURCE_TOO_LARGE
            advice = (
                f"the limits are {MAX_FILES} files, {request.limit_bytes} bytes in total and"
                f" {MAX_DOWNLOAD_SECONDS / 3600:.0f} hours; make it smaller, or put it on a volume"
            )
        case ProblemKind.TRANSIENT:
            code, advice = ExitCode.INTERNAL, "check the server and the network, then run again"
    # The query may contain a signature, which is a credential.
    place = request.uri.partition("?")[0]
    text = problem.text.replace(request.uri, place)
    return StageFailure(reason, f"{request.field} {place}: {text}; {advice}", code)


def _access_advice(request: SourceRequest) -> str:
    """Return what to do after a denial. Many servers deny access to missing objects too."""
    keys = valid_keys(request.uri.partition("://")[0])
    if request.credentials is None:
        return (
            f"if it exists, name a Secret with credentials for its server in"
            f" {request.field}.credentialsSecretRef; the keys are {keys}"
        )
    return f"if it exists, correct Secret {request.credentials.name}; its keys are {keys}"
