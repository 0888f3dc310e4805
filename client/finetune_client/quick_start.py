# SPDX-License-Identifier: Apache-2.0
"""The short cut from a file of rows: its Dataset, run and endpoint, as YAML that is then an ordinary input.

The URI of the rows has their digest. A local run keeps a copy of them where `finetune upload` puts them in a
cluster whose default store is `pvc://artifacts`. A run in a cluster uploads them, and writes the URI of the
upload.
"""

import re
import shlex
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final, get_args

import yaml

from finetune_client.backend import Object
from finetune_client.errors import OperationError, ProgramExit
from finetune_client.local import ROOT
from finetune_client.local.profile import STORE
from finetune_client.offline.manifests import SUFFIXES
from finetune_client.transfer.uploading import DIGEST_LENGTH, Upload, object_name, read_upload, store_path
from finetune_operator.api.meta import API_VERSION
from finetune_trainer.contract.metrics import DEFAULT_METRICS, METRICS
from finetune_trainer.contract.vocabulary import Subject
from finetune_trainer.data.column_guess import guess_columns
from finetune_trainer.data.files import FileUnreadable, SourceFile, TooLarge
from finetune_trainer.data.recipe import Recipe

SCHEMES: Final = ("hf", "pvc", "s3", "gs", "abfs")
BASE: Final = "Base"
GATE: Final = re.compile(
    r"\s*(?P<metric>[\w/.-]+)\s*(?P<sign>>=|<=|≥|≤)\s*(?P<bound>-?[0-9.]+|[A-Za-z]+)"
    r"(?:\s*(?P<gain_sign>[+-])\s*(?P<gain>[0-9.]+))?(?:\s+at\s+(?P<confidence>[0-9.]+))?\s*"
)
_METRIC: Final = DEFAULT_METRICS[0]
EXAMPLES: Final = f"'{_METRIC} >= 0.8', '{_METRIC} >= Base + 0.1', or '{_METRIC} >= 0.8 at 0.9'"
"""Gates as a person writes them; the last one has a confidence."""
COMMENTS: Final = {
    "Dataset": "The rows, checked and split into train, validation and test.",
    "FineTuneJob": "One run. Its Checkpoint becomes the champion of the model line if it is promoted.",
    "InferenceDeployment": "The endpoint. It serves the champion of the line as soon as there is one.",
}


@dataclass(frozen=True, slots=True)
class QuickStart:
    """What a short cut wrote.

    Attributes:
        manifest: YAML file with the objects, next to the rows.
        objects: the objects in it.
        said: lines for the user: the guessed columns, and where the files are.
    """

    manifest: Path
    objects: list[Object]
    said: tuple[str, ...]


def objects_for(rows: Path, model: str, gates: Sequence[str] = (), *, serve: bool = False) -> list[Object]:
    """A Dataset of these rows, a run on it, and its endpoint if `serve` is set.

    Args:
        rows: a file of rows in any format that a Dataset reads.
        model: URI of the base model, such as hf://ORG/NAME or hf://ORG/NAME@REVISION.
        gates: bounds such as `loss <= 1.5`.
        serve: whether there is an endpoint.

    Raises:
        OperationError: the rows cannot be read, their columns cannot be guessed, or a model or gate is wrong.
    """
    return _objects(rows, _local_source(_read(rows)), model, gates, serve=serve)


Place = Callable[[Upload], Object]
"""Brings rows to where a run reads them. Returns `uri`, and `credentialsSecretRef` if pods need one."""


def write_quick_start(
    rows: Path, model: str, gates: Sequence[str] = (), *, serve: bool = False, place: Place
) -> QuickStart:
    """Write the objects to a YAML file next to the rows, and bring the rows to where runs read them.

    The same call writes the same file again, so that a run continues. With another `place` only the location
    of the rows changes.

    Args:
        rows: a file of rows in any format that a Dataset reads.
        model: URI of the base model.
        gates: bounds such as `loss <= 1.5`.
        serve: whether there is an endpoint.
        place: brings the rows there; called after everything else was checked.

    Raises:
        OperationError: as `objects_for`; or the YAML file exists with another content, which is kept; or as
            `place`.
    """
    upload = _read(rows)
    objects = _objects(rows, _local_source(upload), model, gates, serve=serve)
    manifest = rows.with_name(f"{rows.name.partition('.')[0]}.yaml")
    before = manifest.read_text(encoding="utf-8") if manifest.exists() else None
    if before is not None and not _differs_only_in_place(before, _text(objects, rows), upload):
        raise OperationError(
            f"{manifest} exists, and these rows, model and gates would change it. Run the file as it is, or"
            " remove it",
            [shlex.join(["finetune", "run", str(manifest)]), shlex.join(["rm", str(manifest)])],
            exit_code=ProgramExit.EXISTS,
        )
    (source,) = objects[0]["spec"]["sources"]
    columns = source.get("columns")
    source.clear()
    source |= place(upload) | ({} if columns is None else {"columns": columns})
    text = _text(objects, rows)
    manifest.write_text(text, encoding="utf-8")
    said = [] if columns is None else [f"columns guessed by their names: {_pairs(columns)}"]
    done = "wrote" if before is None else "kept" if before == text else "changed the location of the rows in"
    said.append(f"{done} {manifest}: {', '.join(each['kind'] for each in objects)}")
    return QuickStart(manifest, objects, tuple(said))


def manifest_files(
    files: Sequence[Path],
    model: str,
    gates: Sequence[str],
    place: Callable[[Path], Place],
    *,
    serve: bool,
) -> tuple[Sequence[Path], Sequence[str]]:
    """The files with objects of a run, and what was written to make them from a file of rows.

    Args:
        files: YAML files; with a model, one file of rows.
        model: base model of the rows; empty if the files are YAML.
        gates: bounds for the rows.
        place: brings a file of rows to where the run reads it.
        serve: whether rows get an endpoint.

    Raises:
        OperationError: the arguments contradict each other; or as `write_quick_start`.
    """
    rows = next((path for path in files if path.is_file() and path.suffix not in SUFFIXES), None)
    if model:
        if len(files) != 1:
            raise OperationError("--model needs one file of rows", exit_code=ProgramExit.INVALID)
        quick_start = write_quick_start(files[0], model, gates, serve=serve, place=place(files[0]))
        return [quick_start.manifest], quick_start.said
    if rows is not None:
        raise OperationError(
            f"{rows} is a file of rows: name its base model, as in --model hf://ORG/NAME",
            exit_code=ProgramExit.INVALID,
        )
    if gates:
        raise OperationError(
            "--gate belongs to --model and a file of rows; the gates of YAML files are in their"
            " spec.evaluation.gates",
            exit_code=ProgramExit.INVALID,
        )
    return files, ()


def keep_for_local_runs(rows: Path, root: Path = ROOT) -> Place:
    """Copies the rows to where the local runs of a folder read them."""

    def place(upload: Upload) -> Object:
        stored = root / "claims" / STORE / store_path(upload)
        if not stored.exists():
            _copy(rows, stored)
        return _local_source(upload)

    return place


def _local_source(upload: Upload) -> Object:
    return {"uri": f"pvc://{STORE}/{store_path(upload)}"}


PLACE_LINES: Final = re.compile(
    r"\A# .*\n|^  - uri: .*\n(?:    credentialsSecretRef:\n      name: .*\n)?", re.MULTILINE
)
"""What depends on the location of the rows in a written file: its first comment, and the source."""


def _differs_only_in_place(before: str, text: str, upload: Upload) -> bool:
    has_rows = upload.sha256[:DIGEST_LENGTH] in before
    return before == text or (has_rows and PLACE_LINES.sub("", before) == PLACE_LINES.sub("", text))


def _pairs(columns: dict[str, str]) -> str:
    return ", ".join(f"{role} = {column}" for role, column in columns.items())


def _read(rows: Path) -> Upload:
    if rows.is_dir():
        raise OperationError(f"{rows} is a folder: name a file of rows", exit_code=ProgramExit.INVALID)
    return read_upload(rows)


def _objects(rows: Path, source: Object, model: str, gates: Sequence[str], *, serve: bool) -> list[Object]:
    name = _name(rows)
    template = _columns(rows, source)
    dataset = {"sources": [source], **({} if template is None else {"template": template})}
    base_model = _base_model(model)
    run: Object = {
        "modelLine": name,
        "baseModel": base_model,
        "dataset": {"ref": {"name": name}},
        **_bar([_gate(text) for text in gates]),
    }
    objects = [_object("Dataset", name, dataset), _object("FineTuneJob", name, run)]
    if serve:
        models = [{"name": name, "follow": {"modelLine": name}}]
        endpoint = {"baseModel": base_model, "models": models}
        objects.append(_object("InferenceDeployment", name, endpoint))
    return objects


def _object(kind: str, name: str, spec: Object) -> Object:
    return {"apiVersion": API_VERSION, "kind": kind, "metadata": {"name": name}, "spec": spec}


def _name(rows: Path) -> str:
    """The name of the objects: that of the file in the form of Kubernetes."""
    name = object_name(rows.name)
    return name if re.match("[a-z]", name) else object_name(f"rows-{name}")


def _columns(rows: Path, source: Object) -> str | None:
    """Add the guessed columns to the source. Returns the template, if one is needed."""
    try:
        guess = guess_columns(SourceFile(rows), Recipe())
    except (FileUnreadable, TooLarge) as error:
        raise OperationError(str(error), exit_code=ProgramExit.INVALID) from error
    if guess is None:
        return None
    if guess.names is None:
        raise OperationError(
            f"{rows} has the columns {', '.join(guess.columns)}, and their names do not say which is the"
            " prompt and which the answer. Rename two of them to prompt and completion",
            [shlex.join(["finetune", "check", str(rows)])],
            exit_code=ProgramExit.INVALID,
        )
    names = {role: name for role, name in asdict(replace(guess.names, template=None)).items() if name}
    source["columns"] = names
    return guess.names.template


def _base_model(uri: str) -> Object:
    scheme, mark, path = uri.partition("://")
    if not mark or scheme not in SCHEMES or not path:
        advice = f"hf://{uri}" if re.fullmatch(r"\w[\w.-]*/[\w.-]+", uri) else "hf://ORG/NAME"
        raise OperationError(
            f"--model {uri} is not the URI of a model: write it as {advice}, or as pvc://CLAIM/FOLDER",
            exit_code=ProgramExit.INVALID,
        )
    location, _, revision = uri.partition("@") if scheme == "hf" else (uri, "", "")
    return {"uri": location, **({"revision": revision} if revision else {})}


def _gate(text: str) -> Object:
    """The gate of a text such as `loss <= 1.5`."""
    found = GATE.fullmatch(text)
    if found is None:
        raise _no_gate(text, f"write it as {EXAMPLES}")
    metric, bound, gain = found["metric"], found["bound"], found["gain"]
    if metric not in METRICS:
        near = get_close_matches(metric, METRICS, 1)
        raise _no_gate(text, f"{metric} is not a metric{f'; did you mean {near[0]}' if near else ''}")
    is_min = found["sign"] in (">=", "≥")
    gate: Object = {"metric": metric}
    if bound[0].isalpha():
        # Of a loss, less is a gain.
        if bound not in _COMPARED or (found["gain_sign"] or "+-"[not is_min]) != "+-"[not is_min]:
            subjects = ", ".join(_COMPARED)
            raise _no_gate(text, f"compare with one of {subjects}, as in {EXAMPLES}")
        gate |= {"minGain": _number(text, gain or "0"), "over": bound}
    elif gain is not None:
        raise _no_gate(text, f"write it as {EXAMPLES}")
    else:
        gate["min" if is_min else "max"] = _number(text, bound)
    if found["confidence"] is not None:
        gate["confidence"] = _number(text, found["confidence"])
    return gate


_COMPARED: Final = tuple(subject for subject in get_args(Subject) if subject != "Tuned")


def _number(gate: str, text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise _no_gate(gate, f"{text} is not a number") from error


def _no_gate(text: str, advice: str) -> OperationError:
    return OperationError(f"--gate '{text}' is not a gate: {advice}", exit_code=ProgramExit.INVALID)


def _bar(gates: Sequence[Object]) -> Object:
    """Evaluation and promotion of the run."""
    compared = {BASE: None} | {str(gate["over"]): None for gate in gates if "over" in gate}
    metrics = dict.fromkeys((*(str(gate["metric"]) for gate in gates), *DEFAULT_METRICS))
    evaluation: Object = {"metrics": list(metrics), "compare": list(compared)}
    if gates:
        return {"evaluation": {**evaluation, "gates": list(gates)}}
    # Without gates nothing would be promoted, and an endpoint would wait.
    return {"evaluation": evaluation, "promotion": {"mode": "Always"}}


def _text(objects: Sequence[Object], rows: Path) -> str:
    (source,) = objects[0]["spec"]["sources"]
    upload = shlex.join(["finetune", "upload", str(rows), "--to", f"pvc://{STORE}"])
    head = f"A local run finds the rows in {ROOT}. For a cluster, first: {upload}"
    if not source["uri"].startswith(f"pvc://{STORE}/"):
        head = f"The rows of {rows.name} were uploaded by `finetune run --cluster`."
    head = f"# {head}\n"
    return head + "---\n".join(f"# {COMMENTS[each['kind']]}\n{_dumped(each)}" for each in objects)


def _dumped(manifest: Any) -> str:
    return str(yaml.safe_dump(manifest, sort_keys=False, allow_unicode=True, width=110))


def _copy(rows: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial")
    shutil.copyfile(rows, partial)
    partial.replace(target)
