# SPDX-License-Identifier: Apache-2.0
"""Examples to begin with: their objects and their rows, copied into a folder of the user.

A wheel has them beside this module, a checkout in `examples`. The kustomization of an example names its
files.
"""

import shutil
from pathlib import Path
from typing import Any, Final

import yaml

from finetune_client.backend import Object
from finetune_client.errors import OperationError, ProgramExit

TEMPLATES: Final = {
    "ticket-routing": "Short answers of six classes: messages are routed to teams. With an endpoint.",
    "brand-voice": "Free texts from a spreadsheet, promoted by a person. With an endpoint.",
    "order-extraction": "JSON from messages, judged field by field.",
}
"""Examples with rows and a run, and what each shows."""
KUSTOMIZATION: Final = "kustomization.yaml"
PLACES: Final = (Path(__file__).parent / "examples", Path(__file__).parents[2] / "examples")
CONTROLS: Final = ("cancel", "suspend")
"""Fields of a run's spec that control it, and are not what it trains."""


def template_files(template: str) -> dict[str, Path]:
    """The files of an example by their paths below its folder.

    Raises:
        OperationError: no example has this name, or this installation has none.
    """
    if template not in TEMPLATES:
        raise OperationError(
            f"template {template} does not exist: use one of {', '.join(TEMPLATES)}",
            ["finetune init --list"],
            exit_code=ProgramExit.INVALID,
        )
    folder = next((place / template for place in PLACES if (place / template).is_dir()), None)
    if folder is None:
        raise OperationError("this installation has no examples: install finetune-operator from its wheel")
    kustomization: Any = yaml.safe_load((folder / KUSTOMIZATION).read_text(encoding="utf-8"))
    generated = [file for each in kustomization.get("configMapGenerator", ()) for file in each["files"]]
    return {name: folder / name for name in (KUSTOMIZATION, *kustomization["resources"], *generated)}


def write_template(template: str, folder: Path) -> list[Path]:
    """Copy an example into a folder, and return its files. No file is overwritten.

    Raises:
        OperationError: as `template_files`; or a file exists, and then none is written.
    """
    files = {folder / name: source for name, source in template_files(template).items()}
    _require_new(*files)
    for target, source in files.items():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    return list(files)


def write_copy(run: Object, name: str, file: Path) -> None:
    """Write a run with the spec of another one under a new name.

    Raises:
        OperationError: the file exists.
    """
    _require_new(file)
    spec = {key: value for key, value in run["spec"].items() if key not in CONTROLS}
    copy = {"apiVersion": run["apiVersion"], "kind": run["kind"], "metadata": {"name": name}, "spec": spec}
    text = yaml.safe_dump(copy, sort_keys=False, allow_unicode=True)
    file.write_text(f"# A copy of the run {run['metadata']['name']}.\n{text}", encoding="utf-8")


def _require_new(*paths: Path) -> None:
    taken = [path for path in paths if path.exists()]
    if taken:
        raise OperationError(
            f"{taken[0]} exists, and nothing is overwritten: name another folder or file",
            exit_code=ProgramExit.EXISTS,
        )
