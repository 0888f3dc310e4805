# SPDX-License-Identifier: Apache-2.0
"""`finetune validate`: judge manifests without a cluster, and on request by a server-side dry run."""

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Final, Literal

import typer

from finetune_client.errors import OperationError, ProgramExit
from finetune_client.offline.findings import Finding, Located, Severity, counted
from finetune_client.offline.manifests import (
    ManifestFile,
    WrittenObject,
    find_files,
    read_manifests,
    read_text,
)

STDIN: Final = "-"


def validate(
    files: Annotated[
        list[str],
        typer.Argument(metavar="FILE", help="Manifest, folder with manifests, or - for the standard input."),
    ],
    *,
    output: Annotated[
        Literal["text", "json"], typer.Option("--output", "-o", help="Form of the findings.")
    ] = "text",
    server: Annotated[
        bool,
        typer.Option(
            "--server", help="Also ask the API server, by a dry run with kubectl that stores nothing."
        ),
    ] = False,
    context: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="Context of the kubeconfig for --server. Default: the current one."
        ),
    ] = "",
    namespace: Annotated[
        str,
        typer.Option(
            "--namespace",
            "-n",
            metavar="NAME",
            help="Namespace for --server of objects that name none. Default: the one of the context.",
        ),
    ] = "",
) -> None:
    sources, found = _read(files)
    num_files = len(sources) + len(found)
    read = [each for source in sources for each in read_manifests(source)]
    manifests = [each for each in read if isinstance(each, WrittenObject)]
    found += [each for each in read if isinstance(each, Located)]
    if not manifests and not found:
        raise OperationError(
            f"no object in {', '.join(files)}: name files with manifests (.yaml, .yml, .json)",
            exit_code=ProgramExit.INVALID,
        )
    # Importing the definitions takes most of a call, and the help needs none of them.
    from finetune_client.offline.schema import is_ours
    from finetune_client.offline.validation import judge

    found = _in_order(sources, [*found, *judge(manifests)])
    if server:
        options = {"context": context, "namespace": namespace}
        refused = {(each.file, each.kind, each.name) for each in found if _is(each, Severity.ERROR)}
        asked = [each for each in manifests if (each.file, each.kind, each.name) not in refused]
        dry_run = _dry_run(asked, [f"--{name}={value}" for name, value in options.items() if value])
        found = _in_order(sources, [*found, *dry_run])
    judged = sum(is_ours(each.value) for each in manifests)
    counts = {"files": num_files, "judged": judged, "others": len(manifests) - judged}
    _print(output, found, counts)
    if any(_is(each, Severity.ERROR) for each in found):
        raise typer.Exit(ProgramExit.INVALID)
    if any(_is(each, Severity.WARNING) for each in found):
        raise typer.Exit(ProgramExit.WARNINGS)


def _is(located: Located, severity: Severity) -> bool:
    return located.finding.severity is severity


def _read(names: Sequence[str]) -> tuple[list[ManifestFile], list[Located]]:
    """The text of the files, each once, and the files that cannot be read."""
    sources, unreadable = [], []
    for name, from_folder in _files(names):
        try:
            data = sys.stdin.buffer.read() if name == STDIN else Path(name).read_bytes()
            sources.append(ManifestFile(name, read_text(data), from_folder))
        except (OSError, ValueError) as error:
            text = f"the file cannot be read: {error.strerror}" if isinstance(error, OSError) else str(error)
            unreadable.append(Located(name, 1, "", "", Finding(Severity.ERROR, (), "", text)))
    return sources, unreadable


def _files(names: Sequence[str]) -> Iterator[tuple[str, bool]]:
    """Names of files, and whether each was found in a folder."""
    seen = set[Path]()
    for name in names:
        path = Path(name)
        if name == STDIN:
            yield name, False
            continue
        if not path.exists():
            raise OperationError(f"no file {name}", exit_code=ProgramExit.INVALID)
        for file in find_files(path) if path.is_dir() else [path]:
            if file.resolve() not in seen:
                seen.add(file.resolve())
                yield str(file), path.is_dir()


def _in_order(sources: Sequence[ManifestFile], found: Sequence[Located]) -> list[Located]:
    order = {source.file: number for number, source in enumerate(sources)}
    return sorted(found, key=lambda each: (order.get(each.file, -1), each.line))


def _dry_run(manifests: Sequence[WrittenObject], options: Sequence[str]) -> Iterator[Located]:
    """Refusals of the API server, one call per object, so that each has its place.

    Raises:
        OperationError: kubectl or the cluster cannot be reached.
    """
    from finetune_client.access import run_program

    try:
        run_program("kubectl", ["kubectl", *options], ["version", "--output=json"], None)
    except (OperationError, FileNotFoundError) as error:
        raise OperationError(
            f"--server needs kubectl and a cluster: {error}",
            details=["Without --server no cluster is needed."],
        ) from error
    apply = ["apply", "--dry-run=server", "--validate=strict", "--filename=-"]
    for manifest in manifests:
        if not manifest.kind or "apiVersion" not in manifest.value or _is_local(manifest):
            continue
        try:
            run_program("kubectl", ["kubectl", *options], apply, json.dumps(manifest.value))
        except OperationError as error:
            message = " ".join(str(error).partition(" failed: ")[2].split())
            yield manifest.locate(Finding(Severity.ERROR, (), "", f"the API server refuses it: {message}"))


def _is_local(manifest: WrittenObject) -> bool:
    """Whether the object is read by kustomize and never sent."""
    return str(manifest.value["apiVersion"]).startswith("kustomize.config.k8s.io/")


def _print(output: str, found: Sequence[Located], counts: dict[str, int]) -> None:
    """Print the findings, and numbers of files, judged and other objects, errors and warnings."""
    errors, warnings = (sum(_is(each, one) for each in found) for one in (Severity.ERROR, Severity.WARNING))
    if output == "json":
        numbers = counts | {"errors": errors, "warnings": warnings}
        findings = [each.to_dict() for each in found]
        print(json.dumps(numbers | {"findings": findings}, indent=2, ensure_ascii=False))
        return
    for each in found:
        print(each)
    verdict = f"{counted(errors, 'error')}, {counted(warnings, 'warning')}" if errors or warnings else "valid"
    others = f", {counted(counts['others'], 'other object')} not judged" if counts["others"] else ""
    print(f"{counted(counts['judged'], 'object')} in {counted(counts['files'], 'file')}{others}: {verdict}")
