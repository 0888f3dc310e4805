"""A file or folder that a stage reads over the network: what is in it, and how it comes here."""

import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from finetune_trainer import canonical
from finetune_trainer.contract.outcomes import ExitCode, FailureReason
from finetune_trainer.contract.references import SecretMount
from finetune_trainer.manifest import OnBytes, digest_of, ignore_bytes
from finetune_trainer.remote.credentials import KEYS, load_credentials
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
    """What the spec asks for, in its words."""

    uri: str
    field: str
    """Of the spec, such as `source`; beside its uri there is its `credentialsSecretRef`."""
    credentials: SecretMount | None
    absent: FailureReason
    """The reason where there is nothing."""
    limit_bytes: int
    revision: str | None = None
    """Branch, tag or commit at the hub."""


class RemoteSource:
    """What a uri stands for at the moment when it is opened.

    Whatever goes wrong is a StageFailure that names the uri: ACCESS_DENIED, ADDRESS_REFUSED,
    INVALID_CREDENTIALS, SOURCE_TOO_LARGE, SOURCE_UNAVAILABLE, or the `absent` of what is wanted. Everything
    may raise Preempted.
    """

    def __init__(self, wanted: SourceRequest, stop: threading.Event) -> None:
        self._wanted = wanted
        self._stop = stop
        self._deadline = time.monotonic() + MAX_DOWNLOAD_SECONDS
        SCRUBBER.hold_uri(wanted.uri)
        folder = open_filesystem(wanted.uri, load_credentials(wanted.credentials))
        self._retrier = Retrier(folder, stop)
        self.revision: str | None = None
        """The commit at the hub; None elsewhere."""
        with self._explained():
            if folder.scheme == "hf":
                from finetune_trainer.remote import hub

                folder, self.revision = self._retrier.call(lambda: hub.pinned(folder, wanted.revision))
            self._folder = folder
            self.files = self._retrier.call(lambda: list_files(folder))
        self.is_file = [file.path for file in self.files] == [folder.path]
        """Whether the uri names a file, not a folder."""

    @property
    def key(self) -> str | None:
        """Names server, uri and content: equal keys mean equal files; None where it tells no versions."""
        if self.revision is None and not all(file.version for file in self.files):
            return None
        listed = [[file.name, file.size_bytes, file.version] for file in self.files]
        content = canonical.encode([self._folder.endpoint, self._wanted.uri, self.revision or listed])
        return digest_of(content).removeprefix("sha256:")

    def version(self, files: Iterable[RemoteFile]) -> str | None:
        """Tells this content of some of the files from another, by their versions or times, if it can.

        Less strict than `key`: where a server has no versions, its times must do.
        """
        listed = [[file.name, file.size_bytes, file.version or file.modified] for file in files]
        content = listed if all(version for _, _, version in listed) else self.revision
        if content is None:
            return None
        return digest_of(canonical.encode([self._folder.endpoint, self._wanted.uri, content]))

    def download(self, files: Iterable[RemoteFile], folder: Path, on_bytes: OnBytes = ignore_bytes) -> None:
        """Bring files into a folder; those of them that are there already, whole, are kept.

        Raises OSError about the folder.
        """
        wanted = list(files)
        limit = self._wanted.limit_bytes
        with self._explained():
            total = sum(file.size_bytes or 0 for file in wanted)
            if total > limit:
                raise Unreachable(RemoteProblem(ProblemKind.LIMIT, f"it has {total} bytes"))
            download = Download(self._folder, self._retrier, self._stop, limit, self._deadline)
            for file in wanted:
                download.fetch(file, folder / file.name, on_bytes)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except Unreachable as error:
            raise _failure(self._wanted, error.problem) from error


def _failure(wanted: SourceRequest, problem: RemoteProblem) -> StageFailure:
    reason, code, advice = (
        FailureReason.SOURCE_UNAVAILABLE,
        ExitCode.BAD_CONFIG,
        f"correct {wanted.field}.uri or its credentials",
    )
    match problem.kind:
        case ProblemKind.ABSENT:
            reason, advice = wanted.absent, f"check {wanted.field}.uri"
        case ProblemKind.DENIED:
            reason, advice = FailureReason.ACCESS_DENIED, _proof(wanted)
        case ProblemKind.FORBIDDEN_ADDRESS:
            reason, advice = FailureReason.ADDRESS_REFUSED, "name another server"
        case ProblemKind.UNTRUSTED:
            advice = (
                f"put the authority's certificate as key caBundle into the Secret of"
                f" {wanted.field}.credentialsSecretRef"
            )
        case ProblemKind.LIMIT:
            reason = FailureReason.SOURCE_TOO_LARGE
            advice = (
                f"at most {MAX_FILES} files of {wanted.limit_bytes} bytes together are taken, in"
                f" {MAX_DOWNLOAD_SECONDS / 3600:.0f} hours; make it smaller, or put it on a volume"
            )
        case ProblemKind.PASSING:
            code, advice = ExitCode.INTERNAL, "check the server and the network, then run again"
    # What follows the question mark may be a signature, which is a credential.
    place = wanted.uri.partition("?")[0]
    text = problem.text.replace(wanted.uri, place)
    return StageFailure(reason, f"{wanted.field} {place}: {text}; {advice}", code)


def _proof(wanted: SourceRequest) -> str:
    """What to do about a refusal: for many servers a missing object looks the same."""
    keys = ", ".join(KEYS[wanted.uri.partition("://")[0]])
    if wanted.credentials is None:
        return (
            f"if it is there, name a Secret in {wanted.field}.credentialsSecretRef that has what its server"
            f" asks for; the keys are {keys}"
        )
    return f"if it is there, correct Secret {wanted.credentials.name}; its keys are {keys}"
