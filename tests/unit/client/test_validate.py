# SPDX-License-Identifier: Apache-2.0
"""`finetune validate`: what it prints about files, and how it ends.

That its verdicts are those of the API server is tested in tests/integration/rules.
"""

import copy
import io
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from finetune_client.errors import ProgramExit
from finetune_client.offline import references, regex
from finetune_client.offline.definitions import SCHEMAS
from finetune_client.offline.manifests import WrittenObject
from finetune_client.offline.validation import judge_object
from finetune_client.program import main
from finetune_operator.api.crd import KINDS_BY_NAME
from finetune_operator.api.foreign_names import FOREIGN_NAMES, ForeignName

ROOT: Final = Path(__file__).parents[3]
RUN: Final = """\
apiVersion: finetune.dev/v1alpha1
kind: FineTuneJob
metadata: {name: tickets-v1}
spec:
  modelLine: tickets
  baseModel: {uri: hf://google/gemma-3-270m}
  dataset: {ref: {name: tickets}}
"""
DATASET: Final = """\
apiVersion: finetune.dev/v1alpha1
kind: Dataset
metadata: {name: tickets}
spec: {sources: [{uri: hf://datasets/acme/tickets/train.jsonl}]}
"""
ENDPOINT: Final = """\
apiVersion: finetune.dev/v1alpha1
kind: InferenceDeployment
metadata: {name: tickets}
spec: {models: [{name: tickets, follow: {modelLine: tickets}}]}
"""
OURS: Final = "apiVersion: finetune.dev/v1alpha1"
ALL: Final = f"{DATASET}---\n{RUN}---\n{ENDPOINT}"

Validate = Callable[..., tuple[int, list[str]]]


@pytest.fixture
def validate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Validate:
    """Validates a text as the file `f.yaml`, and returns the exit code and the lines without the file."""
    monkeypatch.chdir(tmp_path)

    def run(text: str | bytes) -> tuple[int, list[str]]:
        Path("f.yaml").write_bytes(text.encode() if isinstance(text, str) else text)
        with pytest.raises(SystemExit) as end:
            main(["validate", "f.yaml"])
        lines = capsys.readouterr().out.splitlines()
        return int(end.value.code or 0), [line.removeprefix("f.yaml:") for line in lines]

    return run


def test_objects_that_belong_together_are_valid(validate: Validate) -> None:
    assert validate(ALL) == (0, ["3 objects in 1 file: valid"])


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (
            "  hyperparamters: {epochs: 3}",
            "spec.hyperparamters: unknown field; did you mean hyperparameters?",
        ),
        ("  epochs: 3", "spec.epochs: unknown field; epochs is spec.hyperparameters.epochs"),
        ("  sources: []", "spec.sources: unknown field; sources is spec.sources of a Dataset"),
        ("  compute: {devices: two}", 'spec.compute.devices: must be of type integer, not string: "two"'),
        ("  compute: {devices: -1}", "spec.compute.devices: must be at least 1, not -1"),
        (
            "  promotion: {mode: bygates}",
            (
                'spec.promotion.mode: "bygates" is not one of ByGates, Manual, Always, '
                "Never; did you mean ByGates?"
            ),
        ),
        (
            "  hyperparameters: {warmupRatio: 3}",
            (
                "spec.hyperparameters.warmupRatio: warmupRatio is a share of the run's steps and at most 0.5:"
                " write 0.03 for 3 %"
            ),
        ),
        ("  suspend: true\n  suspend: false", "spec.suspend: the field occurs twice: keep one"),
    ],
)
def test_a_mistake_is_named_with_its_line_and_what_to_write(
    validate: Validate, wrong: str, said: str
) -> None:
    code, lines = validate(f"{DATASET}---\n{RUN}{wrong}\n")
    last = 12 + len(wrong.splitlines())
    assert (code, lines) == (
        2,
        [f"{last}: FineTuneJob/tickets-v1: {said}", "2 objects in 1 file: 1 error, 0 warnings"],
    )


PROFILE: Final = """\
apiVersion: finetune.dev/v1alpha1
kind: ComputeProfile
metadata: {name: gpus}
spec: {accelerator: {resource: nvidia.com/gpu, maxPerPod: 8}}
"""
VALID: Final = {each["kind"]: each for each in map(yaml.safe_load, (RUN, DATASET, ENDPOINT, PROFILE))}
SAME_NAME: Final = {"POST …/cancel", "suspend"}
"""Names that are our fields too."""
NAMES: Final = [
    (software, entry)
    for software, entries in FOREIGN_NAMES.items()
    for entry in entries
    if entry.name not in SAME_NAME
]


def as_user_of(name: str, kind: str) -> dict[str, Any]:
    """An object that has a name of docs/coming-from.md as a field, or as a label."""
    obj: dict[str, Any] = copy.deepcopy(VALID[kind])
    if name.startswith("label "):
        obj["metadata"]["labels"] = {name.removeprefix("label "): "gpus"}
        return obj
    field, _, value = name.partition(": ")
    *parents, last = field.partition(" (")[0].split(" ")[-1].removeprefix("…/").split(".")
    place = obj["spec"]
    for step in parents:
        place = place.setdefault(step.removesuffix("[]"), {})
    place[last] = value or "anything"
    return obj


@pytest.mark.parametrize(("software", "entry"), NAMES, ids=[f"{name}: {each.name}" for name, each in NAMES])
def test_every_name_of_other_software_is_answered_with_what_to_write(
    software: str, entry: ForeignName
) -> None:
    obj = as_user_of(entry.name, entry.kind or "FineTuneJob")

    found = [f"{each.message} {each.advice}" for each in judge_object(WrittenObject("f.yaml", obj, {(): 1}))]

    assert entry.advice in " ".join(found)


def test_settings_of_other_software_are_recognized_and_each_is_answered(validate: Validate) -> None:
    code, lines = validate("base_model: x\nadapter: lora\nlora_r: 8\nnum_epochs: 3\nunheard_of: 1\n")
    assert code == 2
    assert lines[0] == (
        "1: settings of Axolotl, not an object: write them as fields of objects;"
        " docs/coming-from.md has the table"
    )
    assert "3: lora_r: info: lora_r is spec.method.lora.r of a FineTuneJob" in lines
    assert not any("unheard_of" in line for line in lines)


@pytest.mark.parametrize(
    ("head", "said"),
    [
        (
            "apiVersion: finetune.dev/v1alpha1\nkind: FinetuneJob",
            "FinetuneJob/x: kind: finetune.dev/v1alpha1 has no kind FinetuneJob; did you mean FineTuneJob?",
        ),
        (
            "apiVersion: finetune.dev/v1\nkind: Dataset",
            f"Dataset/x: apiVersion: finetune.dev/v1 has no kind Dataset; write {OURS}",
        ),
        (
            "apiVersion: finetunes.dev/v1alpha1\nkind: Dataset",
            f"Dataset/x: apiVersion: finetunes.dev/v1alpha1 has no kind Dataset; write {OURS}",
        ),
        ("kind: Dataset", f"Dataset/x: apiVersion: is required; write {OURS}"),
    ],
)
def test_a_wrong_kind_or_version_is_answered_with_the_nearest(
    validate: Validate, head: str, said: str
) -> None:
    code, lines = validate(f"{head}\nmetadata: {{name: x}}\n")
    assert code == 2
    assert lines[0].partition(": ")[2] == said


@pytest.mark.parametrize(
    ("head", "said"),
    [
        ("apiVersion: v1\nkind: Secret", "info: not judged: v1 is not an API of this operator"),
        (
            "apiVersion: kaito.sh/v1beta1\nkind: Workspace",
            (
                "info: not judged: kaito.sh/v1beta1 is not an API of this operator;"
                " docs/coming-from.md says what to write for this operator"
            ),
        ),
    ],
)
def test_other_kinds_are_named_and_not_judged(validate: Validate, head: str, said: str) -> None:
    code, lines = validate(f"{head}\nmetadata: {{name: x}}\nnonsense: 1\n")
    kind = head.rpartition(" ")[2]
    assert (code, lines) == (
        0,
        [f"1: {kind}/x: {said}", "0 objects in 1 file, 1 other object not judged: valid"],
    )


def test_a_dataset_of_another_api_is_a_warning(validate: Validate) -> None:
    code, lines = validate("apiVersion: data.fluid.io/v1alpha1\nkind: Dataset\nmetadata: {name: x}\n")
    assert code == ProgramExit.WARNINGS
    assert "the operator's has apiVersion: finetune.dev/v1alpha1" in lines[0]


@pytest.mark.parametrize(
    ("changed", "line", "said"),
    [
        (
            ALL.replace("ref: {name: tickets}", "ref: {name: ticket}"),
            12,
            "spec.dataset.ref.name: warning: the files have no Dataset ticket; did you mean tickets?",
        ),
        (
            ALL.replace("follow: {modelLine: tickets}", "follow: {modelLine: tickts}"),
            17,
            (
                "spec.models[0].follow.modelLine: warning: the files have no model line tickts;"
                " did you mean tickets?"
            ),
        ),
        (
            ALL.replace("follow: {modelLine: tickets}", "follow: {modelLine: poems}"),
            17,
            (
                "spec.models[0].follow.modelLine: warning: no run of the files writes model line poems;"
                " they write tickets"
            ),
        ),
        (
            ALL.replace("{name: tickets-v1}", "{name: tickets-v1, namespace: team}"),
            12,
            (
                "spec.dataset.ref.name: warning: the files have Dataset tickets without a namespace, and this"
                " object is in namespace team; references do not leave a namespace: give both the same"
            ),
        ),
        (
            f"{ALL}---\n{DATASET}",
            21,
            (
                "metadata.name: warning: f.yaml:1 has an object of this kind and name, and the later one"
                " replaces it; rename one of them"
            ),
        ),
    ],
)
def test_a_reference_that_names_nothing_of_the_files_is_a_warning(
    validate: Validate, changed: str, line: int, said: str
) -> None:
    code, lines = validate(changed)
    about = [each.partition(": ")[2] for each in lines if each.startswith(f"{line}: ")]
    assert code == ProgramExit.WARNINGS
    assert said in {each.partition(": ")[2] for each in about}


def test_what_only_the_cluster_can_have_is_said_once(validate: Validate) -> None:
    code, lines = validate(f"{RUN}---\n{RUN.replace('tickets-v1', 'tickets-v2')}")
    assert code == 0
    assert lines == [
        (
            "7: FineTuneJob/tickets-v1: spec.dataset.ref.name: info: Dataset tickets is not in the files: it"
            " must exist in the cluster"
        ),
        "2 objects in 1 file: valid",
    ]


def test_every_field_that_may_refer_to_another_object_exists() -> None:
    for each in references._REFERENCES:
        schema: Any = SCHEMAS[each.kind]["properties"]["spec"]
        for step in each.field.split("."):
            schema = schema.get("items", schema)["properties"][step]


@pytest.mark.parametrize(
    ("part", "kind"),
    [
        ("  store: {uri: s3://runs/a, credentialsSecretRef: {name: bucket}}", "Secret bucket"),
        (
            "  evaluation: {customMetrics: [{name: own, configMapRef: {name: code, key: a.py}}]}",
            "ConfigMap code",
        ),
        ("  store: {uri: pvc://artifacts}", "PersistentVolumeClaim artifacts"),
        ("  compute: {profile: h100}", "ComputeProfile h100"),
    ],
)
def test_a_prerequisite_must_be_in_the_files_or_in_the_cluster(
    validate: Validate, part: str, kind: str
) -> None:
    _, lines = validate(f"{DATASET}---\n{RUN}{part}\n")
    assert any(
        line.endswith(f"info: {kind} is not in the files: it must exist in the cluster") for line in lines
    )
    type_, name = kind.split()
    there = (
        f"---\napiVersion: {'finetune.dev/v1alpha1' if type_ == 'ComputeProfile' else 'v1'}\nkind: {type_}\n"
    )
    _, lines = validate(f"{DATASET}---\n{RUN}{part}\n{there}metadata: {{name: {name}}}\n")
    assert not any("must exist in the cluster" in line for line in lines)


def test_a_configmap_of_a_kustomization_is_in_the_files(validate: Validate) -> None:
    rows = DATASET.replace("hf://datasets/acme/tickets/", "configmap://rows/")
    kustomization = "kind: Kustomization\nconfigMapGenerator: [{name: rows, files: [train.jsonl]}]\n"
    assert len(validate(rows)[1]) == 2
    assert validate(f"{rows}---\n{kustomization}")[1][:-1] == []


def test_mistakes_of_other_documents_are_shown_too(validate: Validate) -> None:
    code, lines = validate(f"{DATASET}---\n\tkind: x\n---\n{RUN}  epoch: 1\n")
    assert code == 2
    assert lines[0] == "6: the YAML cannot be read: a tab in the indentation or after a ':': write spaces"
    assert lines[1].startswith("15: FineTuneJob/tickets-v1: spec.epoch: unknown field")


UNREADABLE: Final = "the YAML cannot be read:"
EXPLODING: Final = "a0: &a0 [x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 9)
)
"""Each line has the one before it nine times."""


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("kind: {{ .Values.kind }}\n", f"1: {UNREADABLE} a template: render it first, for example with"),
        ("a: b: c\n", f"1: {UNREADABLE} mapping values are not allowed in this context: put text"),
        ("a: &x [*x]\n", f"1: {UNREADABLE} the document has more than 64 levels, or contains itself"),
        ("a: !Ref x\n", f"1: {UNREADABLE} the tag !Ref is not allowed in a manifest"),
        (b"a: \xff\n", "1: byte 3 is not UTF-8"),
        ("just text\n", "1: not an object: add apiVersion and kind"),
        (EXPLODING, "the document has more than 200,000 values"),
    ],
    ids=range(7),
)
def test_what_cannot_be_read_is_said_with_its_line(validate: Validate, text: str | bytes, said: str) -> None:
    code, lines = validate(text)
    assert code == 2
    assert said in lines[0]


def test_an_empty_file_has_no_object(validate: Validate, capsys: pytest.CaptureFixture[str]) -> None:
    assert validate("# nothing\n---\n")[0] == 2


def test_the_example_of_the_documentation_prints_what_it_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    command, shown = re.findall(r"```console\n(finetune validate .*?|manifests/.*?)```", page, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    folder = Path(command.split()[-1])
    folder.mkdir()
    (folder / "dataset.yaml").write_text(DATASET)
    (folder / "run.yaml").write_text(
        RUN.replace("ref: {name: tickets}", "ref: {name: ticket}") + "  lora_r: 8\n"
    )
    with pytest.raises(SystemExit):
        main(command.split()[1:])
    assert capsys.readouterr().out == shown


def test_text_of_a_file_does_not_control_the_terminal(validate: Validate) -> None:
    _, lines = validate(RUN.replace("tickets-v1", '"\\e[2Jx"'))
    assert "\x1b" not in "".join(lines)
    assert "\\x1b[2Jx" in lines[0]


def test_numbers_and_truth_values_are_those_of_kubectl(validate: Validate) -> None:
    run = f"{DATASET}---\n{RUN}  suspend: yes\n  hyperparameters: {{learningRate: 2e-4, epochs: 0x3}}\n"
    assert validate(run)[0] == 0
    assert (
        "must be of type string, not integer: 8"
        in validate(run.replace("modelLine: tickets", "modelLine: 010"))[1][0]
    )


@pytest.mark.parametrize(
    ("text", "pattern", "matches"),
    [
        ("ab", "^[a-z]+$", True),
        ("ab\n", "^[a-z]+$", False),
        ("a$", "^a[$]$", True),
        ("a$", r"^a\$$", True),
        ("a]$", "^a[]$]+$", True),
        ("a\u00a0b", r"^[^\s]+$", True),
        ("٣", r"^\d$", False),
    ],
)
@pytest.mark.parametrize("library", ["google-re2", "re"])
def test_patterns_are_those_of_go_with_and_without_google_re2(
    library: str, text: str, pattern: str, matches: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    regex._compile.cache_clear()
    if library == "re":
        monkeypatch.setattr(regex, "re2", None)
    assert regex.is_match(text, pattern) == matches
    regex._compile.cache_clear()


def test_a_list_is_judged_object_by_object(validate: Validate) -> None:
    objects = [*yaml.safe_load_all(ALL)]
    objects[1]["spec"]["epochs"] = 3
    text = yaml.safe_dump({"apiVersion": "v1", "kind": "List", "items": objects})
    (number,) = (n for n, line in enumerate(text.splitlines(), start=1) if "epochs: 3" in line)
    assert validate(text)[1][0].startswith(f"{number}: FineTuneJob/tickets-v1: spec.epochs: unknown field")


def test_the_standard_input_is_read(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(f"{RUN}  epoch: 1\n".encode())))
    with pytest.raises(SystemExit) as end:
        main(["validate", "-"])
    assert end.value.code == 2
    assert "-:8: FineTuneJob/tickets-v1: spec.epoch: unknown field" in capsys.readouterr().out


def test_a_folder_is_read_without_what_is_no_manifest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "team").mkdir()
    (tmp_path / "team" / "all.yml").write_text(ALL)
    (tmp_path / "rows.json").write_text('[{"prompt": "a"}]')
    (tmp_path / "README.md").write_text("kind: Nonsense")
    (tmp_path / ".hidden.yaml").write_text("a: b: c")
    with pytest.raises(SystemExit) as end:
        main(["validate", str(tmp_path), str(tmp_path / "team" / "all.yml"), "--output", "json"])
    report = json.loads(capsys.readouterr().out)
    assert end.value.code == 0
    (finding,) = report.pop("findings")
    assert report == {"files": 2, "judged": 3, "others": 1, "errors": 0, "warnings": 0}
    assert finding == {
        "severity": "info",
        "file": str(tmp_path / "rows.json"),
        "line": 1,
        "message": "not judged: apiVersion and kind are missing",
    }


def test_a_patch_of_a_kustomization_is_not_judged_as_an_object(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("base", "production"):
        Path(name).mkdir()
    Path("base/all.yaml").write_text(ALL)
    Path("production/replicas.yaml").write_text(f"{ENDPOINT.partition('spec')[0]}spec: {{replicas: 3}}\n")
    Path("production/kustomization.yaml").write_text(
        "kind: Kustomization\npatches: [{path: replicas.yaml}]\n"
    )
    with pytest.raises(SystemExit) as end:
        main(["validate", "."])
    assert end.value.code == 0
    assert (
        "production/replicas.yaml:1: InferenceDeployment/tickets: info: not judged: a patch;"
        " judge the result: kubectl kustomize production | finetune validate -\n"
    ) in capsys.readouterr().out


def test_a_file_that_does_not_exist_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["validate", "missing.yaml"])
    assert end.value.code == ProgramExit.INVALID
    assert capsys.readouterr().err == "finetune: no file missing.yaml\n"


def test_no_model_of_the_operator_is_imported() -> None:
    heavy = ("finetune_operator.api.crd", "prompt_toolkit")
    code = (
        "import sys; from finetune_client.program import main\n"
        "try: main(['validate', 'examples/minimal.yaml'])\n"
        f"finally: print([name for name in {heavy} if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-2:] == ["1 object in 1 file: valid", "[]"]


@pytest.mark.parametrize("folder", ["examples", "tests/golden/base"])
def test_every_example_and_every_stored_object_is_accepted(
    folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["validate", str(ROOT / folder), "--output", "json"])
    report = json.loads(capsys.readouterr().out)
    assert [each for each in report["findings"] if each["severity"] == "error"] == []
    assert report["judged"] >= len(KINDS_BY_NAME)
