# SPDX-License-Identifier: Apache-2.0
"""Which files a download of a run or Checkpoint consists of, and where they go on this machine."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from finetune_client.backend import Backend, Object
from finetune_client.errors import OperationError, ProgramExit
from finetune_client.transfer.copying import (
    PARTIAL,
    Carrier,
    Patience,
    Wanted,
    insist,
    receive,
    space_error,
)
from finetune_client.transfer.files import Files
from finetune_client.transfer.stored_files import StoredFilesError
from finetune_operator.manifests.volumes import parse_location, parse_store
from finetune_trainer.disk_space import size_text
from finetune_trainer.manifest import MANIFEST_NAME, Manifest, digest_of

MAX_MANIFEST_BYTES: Final = 16 << 20
ANSWERS: Final = "predictions.jsonl"
"""Name of the answers, next to the page of their evaluation."""


class What(StrEnum):
    """Parts of a download."""

    WEIGHTS = "weights"
    REPORT = "report"
    ANSWERS = "answers"


@dataclass(frozen=True, slots=True)
class Part:
    """A file or folder of the store.

    Attributes:
        what: what it is.
        uri: its URI.
        folder: folder below the target.
        digest: digest of the manifest of a folder; None for a file.
    """

    what: What
    uri: str
    folder: str
    digest: str | None = None


def find_parts(backend: Backend, name: str, what: Sequence[What]) -> list[Part]:
    """The parts of a run, or else of a Checkpoint, in the order of their kinds.

    Args:
        backend: where the objects are.
        name: name of a FineTuneJob or a Checkpoint.
        what: the requested parts; none: all that exist.

    Raises:
        OperationError: nothing has that name, or a requested part does not exist yet.
    """
    run = backend.get("FineTuneJob", name)
    checkpoint = backend.get("Checkpoint", _checkpoint_name(run) if run is not None else name)
    if run is None and checkpoint is None:
        raise OperationError(
            f"no FineTuneJob and no Checkpoint has the name {name} in namespace {backend.namespace}",
            ["finetune ls"],
        )
    parts = [*_weights(checkpoint), *_pages(backend, run, checkpoint)]
    missing = [each for each in what if each not in {part.what for part in parts}]
    if missing or not parts:
        phase = (run or {}).get("status", {}).get("phase") or "none"
        subject = f"FineTuneJob {name}" if run is not None else f"Checkpoint {name}"
        state = f" (phase: {phase})" if run is not None else ""
        raise OperationError(
            f"{subject} has no {' and no '.join(missing) or 'results'}{state}: a stage that ends makes them",
            [f"finetune watch {name}"] if run is not None else [],
        )
    return [part for part in parts if not what or part.what in what]


def _checkpoint_name(run: Object) -> str:
    """The evaluated Checkpoint of a run, or else its best one; empty if it has none."""
    status = run.get("status", {})
    evaluated = status.get("evaluation", {}).get("checkpoint")
    if evaluated:
        return str(evaluated)
    made = status.get("checkpoints") or ()
    best = next((each for each in made if each.get("best")), made[-1] if made else {})
    return str(best.get("name", ""))


def _weights(checkpoint: Object | None) -> Iterable[Part]:
    if checkpoint is not None:
        yield Part(What.WEIGHTS, checkpoint["spec"]["uri"], "weights", checkpoint["spec"]["digest"])


def _pages(backend: Backend, run: Object | None, checkpoint: Object | None) -> Iterable[Part]:
    evaluation: dict[str, Any] = {}
    if run is not None:
        evaluation = run.get("status", {}).get("evaluation") or {}
    elif checkpoint is not None:
        made_by = checkpoint["spec"]["lineage"]["job"]
        run = backend.get("FineTuneJob", made_by["name"])
        if run is not None and run["metadata"]["uid"] != made_by["uid"]:
            run = None
        evaluation = next(iter(checkpoint.get("status", {}).get("evaluations") or ()), {})
    curve = run.get("status", {}).get("training", {}).get("reportUri") if run is not None else None
    if curve:
        yield Part(What.REPORT, curve, "train")
    page = evaluation.get("reportUri")
    if page:
        yield Part(What.REPORT, page, "evaluate")
        yield Part(What.ANSWERS, f"{page.rpartition('/')[0]}/{ANSWERS}", "evaluate")


def location_of(uri: str) -> tuple[str, str]:
    """The store of a URI, such as `pvc://artifacts`, and the path in it.

    Raises:
        OperationError: the URI is not one of a store.
    """
    try:
        claim = parse_store(uri)
        if claim is not None:
            return f"pvc://{claim.name}", parse_location(uri).path
    except ValueError as error:
        raise OperationError(str(error)) from error
    scheme, _, rest = uri.partition("://")
    bucket, _, path = rest.partition("/")
    return f"{scheme}://{bucket}", path


@dataclass(frozen=True)
class Fetched:
    """What a download brought."""

    files: int
    kept: int
    """Files that were there already."""
    size: int
    pages: tuple[Path, ...]
    """What a person opens first: the folder of the weights, and the pages."""


def fetch(
    parts: Sequence[Part],
    folder: Path,
    open_files: Callable[[str], Files],
    patience: Patience,
    begin: Callable[[int], Carrier],
) -> Fetched:
    """Bring parts into a folder. Files that are complete there are kept, parts of files are continued.

    Args:
        parts: the parts.
        folder: the folder, which is made.
        open_files: the files of a store by its URI.
        patience: lost connections while sizes and manifests are read.
        begin: what is called with the bytes of all files, and carries them.

    Raises:
        OperationError: a part is missing or damaged, has a hostile name, or has no space.
        StoredFilesError: the store refuses a file.
    """
    plan: list[tuple[Files, Wanted]] = []
    pages: list[Path] = []
    for part in parts:
        store, path = location_of(part.uri)
        files = open_files(store)
        found = _wanted(part, path, files, folder, patience)
        plan += [(files, wanted) for wanted in found]
        pages.append(found[0].target if part.digest is None else folder / part.folder)
    _check_targets([wanted.target for _, wanted in plan], folder)
    total = sum(wanted.size for _, wanted in plan)
    missing = sum(wanted.size for _, wanted in plan if not wanted.target.exists())
    if (problem := space_error(missing, folder)) is not None:
        raise problem
    carrier = begin(total)
    arrived = [receive(wanted, files, carrier) for files, wanted in plan]
    return Fetched(len(plan), len(plan) - sum(arrived), total, tuple(pages))


def _wanted(part: Part, path: str, files: Files, folder: Path, patience: Patience) -> list[Wanted]:
    if part.digest is None:
        size = insist(path, patience, lambda: files.size(path))
        if size is None:
            raise OperationError(f"{part.uri} does not exist any more: its folder was removed from the store")
        return [Wanted(path, _inside(folder, part.folder, path.rpartition("/")[2]), size)]
    manifest_path = f"{path}/{MANIFEST_NAME}"
    content = insist(manifest_path, patience, lambda: _read_small(files, manifest_path))
    if digest_of(content) != part.digest:
        raise OperationError(
            f"{part.uri} is not the content of the Checkpoint: its {MANIFEST_NAME} has another digest than"
            " spec.digest. Restore the store from a copy, or train again"
        )
    try:
        manifest = Manifest.model_validate_json(content)
    except ValidationError as error:
        raise OperationError(f"{manifest_path} is not valid: {error.errors()[0]['msg']}") from error
    found = [
        Wanted(f"{path}/{file.path}", _inside(folder, part.folder, file.path), file.bytes, file.sha256)
        for file in manifest.files
    ]
    itself = _inside(folder, part.folder, MANIFEST_NAME)
    return [*found, Wanted(manifest_path, itself, len(content), part.digest.removeprefix("sha256:"))]


def _read_small(files: Files, path: str) -> bytes:
    size = files.size(path)
    if size is None:
        raise StoredFilesError(f"{path} does not exist: the folder was removed from the store")
    if size > MAX_MANIFEST_BYTES:
        raise StoredFilesError(f"{path} has {size_text(size)}, and a manifest has at most 16 MiB")
    return b"".join(files.read(path, 0))[: MAX_MANIFEST_BYTES + 1]


def _inside(folder: Path, part: str, name: str) -> Path:
    """The file of this machine for a name that the store gave.

    Raises:
        OperationError: the name leads elsewhere, or hides what it is.
    """
    parts = name.split("/")
    hostile = not name.isprintable() or "\\" in name or any(each in {"", ".", ".."} for each in parts)
    if hostile or name.endswith(PARTIAL):
        raise OperationError(
            f"the store names a file {name!r}, which is not written to this machine: whoever can write to the"
            " store can have chosen it"
        )
    return folder.joinpath(part, *parts)


def _check_targets(targets: Sequence[Path], folder: Path) -> None:
    """No two files may get one name on a file system without case, and no link may lead elsewhere."""
    seen: dict[str, Path] = {}
    root = folder.resolve()
    for target in targets:
        other = seen.setdefault(str(target).casefold(), target)
        if other is not target:
            raise OperationError(
                f"the store names {other.name!r} and {target.name!r}, which differ by case only"
            )
        if not target.parent.resolve().is_relative_to(root):
            raise OperationError(
                f"{target.parent} is a symbolic link out of {folder}: remove it, or name another folder",
                exit_code=ProgramExit.EXISTS,
            )
