# SPDX-License-Identifier: Apache-2.0
"""Links in a claim that lead to files of the pod: their content is never shown, copied or removed."""

import json
import os
import shutil
from pathlib import Path

import pytest

from finetune_trainer.contract.configs import CleanupConfig, CollectConfig
from finetune_trainer.contract.references import ArtifactRef
from finetune_trainer.contract.results import StageResult
from finetune_trainer.contract.serving import FetchConfig, FetchItem
from finetune_trainer.contract.vocabulary import ExitCode, FailureReason
from finetune_trainer.model.bundle import Bundle
from finetune_trainer.runtime.termination import StageFailure
from finetune_trainer.train.publication import _publish_saved
from tests.trainer import processes
from tests.trainer.preparing import OWNER, RUN, Preparation, json_lines, pairs
from tests.trainer.test_check import check
from tests.trainer.workbench import Workbench
from tools.models import tiny

SECRET = "hf_aVeryLongTokenThatNobodyMaySee"


@pytest.fixture
def token(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of a mounted Secret."""
    folder = tmp_path_factory.mktemp("credentials")
    (folder / "token").write_text(SECRET)
    return folder / "token"


@pytest.fixture
def preparation(tmp_path: Path) -> Preparation:
    return Preparation(tmp_path)


@pytest.fixture
def bench(tmp_path: Path) -> Workbench:
    return Workbench(tmp_path)


def texts_below(folder: Path) -> str:
    return "".join(
        path.read_text(errors="replace")
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.is_symlink()
    )


@pytest.mark.parametrize("name", ["x.jsonl", "x.csv", "x.parquet", "x.txt"])
def test_a_link_to_a_secret_ends_the_pod_with_its_place_and_not_its_content(
    preparation: Preparation, token: Path, name: str
) -> None:
    source = preparation.write("rows.jsonl", json_lines(pairs(30))).with_name(name)
    source.symlink_to(os.path.relpath(token, source.parent))

    ended = processes.run(preparation.config(source))

    assert ended.code == ExitCode.BAD_DATA
    assert ended.result.reason == FailureReason.SOURCE_NOT_FOUND
    assert ended.result.message == (
        f"configmap://rows/{name}: {source} leads out of the volume or folder by a symbolic link or by ..;"
        " put the file itself there"
    )
    assert SECRET[:8] not in json.dumps(ended.logs) + texts_below(preparation.root / "store")


@pytest.mark.parametrize("target", ["/proc/self/environ", "/dev/zero"])
@pytest.mark.parametrize("named", ["x.jsonl", "*.jsonl", "."])
def test_links_to_the_environment_and_to_devices_are_refused_also_in_folders_and_by_patterns(
    preparation: Preparation, target: str, named: str
) -> None:
    folder = preparation.write("rows.jsonl", json_lines(pairs(30))).parent
    (folder / "x.jsonl").symlink_to(target)

    failure = preparation.failure(folder / named)

    assert failure.reason == FailureReason.SOURCE_NOT_FOUND
    assert "x.jsonl leads out of the volume" in failure.message


def test_a_linked_folder_is_refused(preparation: Preparation, token: Path) -> None:
    folder = preparation.write("rows.jsonl", "").parent / "more"
    folder.symlink_to(token.parent)

    assert "leads out" in preparation.failure(folder).message


def test_a_named_pipe_is_refused_at_once(preparation: Preparation) -> None:
    source = preparation.write("rows.jsonl", "").with_name("pipe.jsonl")
    os.mkfifo(source)

    assert preparation.failure(source).message == (
        f"configmap://rows/pipe.jsonl: {source} is not a regular file but a named pipe; save its content to a"
        " regular file and name that file"
    )


def test_content_of_unknown_kind_is_never_quoted(preparation: Preparation) -> None:
    failure = preparation.failure(preparation.write("x.jsonl", SECRET))

    assert "the file has one column" in failure.message
    assert SECRET[:8] not in failure.message


@pytest.mark.parametrize("name", ["README.md", "config.json", "model.safetensors", "tokenizer.json"])
def test_nothing_outside_becomes_part_of_a_base_model(bench: Workbench, token: Path, name: str) -> None:
    source = Path(shutil.copytree(tiny(), bench.root / "model"))
    (source / name).unlink(missing_ok=True)
    (source / name).symlink_to(token)

    failure = bench.preflight_failure(source)

    assert failure.reason == FailureReason.BASE_MODEL_INVALID
    assert f"{source / name} leads out of the volume" in failure.message
    assert SECRET not in failure.message + texts_below(bench.root / "store")


def test_a_base_model_of_links_within_its_volume_is_taken_as_one_of_files(bench: Workbench) -> None:
    plain = bench.preflight().base_model
    blobs = Path(shutil.copytree(tiny(), bench.root / "volume" / "blobs"))
    (snapshot := bench.root / "volume" / "snapshot").mkdir()
    for file in blobs.iterdir():
        (snapshot / file.name).symlink_to(f"../blobs/{file.name}")

    assert bench.preflight(snapshot).base_model == plain


def test_an_artifact_with_a_link_out_of_the_store_is_corrupt_for_every_stage(
    bench: Workbench, token: Path
) -> None:
    digest = bench.model()
    ref = ArtifactRef(kind="models", digest=digest)
    path = bench.store.artifact(ref) / "config.json"
    # With the same content, so that only the link is wrong.
    copy = path.rename(token.with_name("config.json"))
    path.symlink_to(copy)
    fetch = FetchConfig(
        owner=OWNER,
        store=bench.store_config,
        destination=str(bench.root / "models"),
        items=(FetchItem(artifact=ref, folder="base"),),
    )

    for verify in (False, True):
        with pytest.raises(StageFailure, match="leads out") as caught:
            bench.store.artifact(ref, verify=verify)
        assert caught.value.reason == FailureReason.ARTIFACT_CORRUPT
    ended = processes.run(fetch)

    assert ended.termination_message.startswith("ArtifactCorrupt: ")
    assert not (bench.root / "models" / "base").exists()


def test_a_planted_link_beside_the_files_of_an_artifact_is_noticed(bench: Workbench, token: Path) -> None:
    ref = ArtifactRef(kind="models", digest=bench.model())
    link = bench.store.artifact(ref) / "generation_config.json"
    link.unlink(missing_ok=True)
    link.symlink_to(token)

    with pytest.raises(StageFailure, match=r"generation_config\.json was changed or damaged: it leads out"):
        bench.store.artifact(ref)


def test_a_planted_link_in_a_runs_folder_becomes_no_part_of_a_checkpoint(
    bench: Workbench, token: Path
) -> None:
    folder = bench.store.run_folder(RUN, "train").path / "best" / "step-1"
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text("{}")
    (folder / "README.md").symlink_to(token)

    with pytest.raises(StageFailure, match=r"README\.md leads out"):
        _publish_saved(bench.store, folder, Bundle(tiny(), "", ()))
    assert SECRET not in texts_below(bench.root / "store")


def test_a_result_that_is_a_link_is_not_read(preparation: Preparation, token: Path) -> None:
    result = StageResult(stage="prepare", run=RUN, outcome="Succeeded")
    (token.parent / "result.json").write_text(result.to_json())
    folder = preparation.store.run_folder(RUN, "prepare").path
    (folder / "result.json").symlink_to(token.parent / "result.json")

    ended = processes.run(CollectConfig(owner=OWNER, run=RUN, of="prepare", store=preparation.store_config))

    assert (ended.code, ended.result.reason) == (ExitCode.STORE_UNAVAILABLE, FailureReason.STORE_UNAVAILABLE)
    assert "result.json leads out" in ended.result.message


def test_cleanup_removes_nothing_outside_the_store(bench: Workbench, token: Path) -> None:
    outside = token.parent / f"{'0' * 64}"
    outside.mkdir()
    (outside / "manifest.json").write_text("{}")
    (bench.root / "store").mkdir()
    (bench.root / "store" / "checkpoints").symlink_to(token.parent)
    ref = ArtifactRef(kind="checkpoints", digest=f"sha256:{'0' * 64}")
    config = CleanupConfig(owner=OWNER, store=bench.store_config, artifact=ref)

    ended = processes.run(config)

    assert ended.code == ExitCode.STORE_UNAVAILABLE
    assert (outside / "manifest.json").exists()


def test_nothing_is_written_through_a_linked_run_folder(preparation: Preparation, token: Path) -> None:
    (preparation.root / "store").mkdir()
    (preparation.root / "store" / "runs").symlink_to(token.parent)

    failure = preparation.failure(preparation.write("rows.jsonl", json_lines(pairs(30))))

    assert failure.reason == FailureReason.STORE_UNAVAILABLE
    assert [path.name for path in token.parent.iterdir()] == ["token"]


def test_finetune_check_follows_no_link_out_of_a_folder_but_takes_the_file_that_is_named(
    tmp_path: Path,
) -> None:
    (tmp_path / "elsewhere.jsonl").write_text(json_lines(pairs(30)))
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "rows.jsonl").symlink_to("../elsewhere.jsonl")

    refused = check(tmp_path, "folder")
    taken = check(tmp_path, "folder/rows.jsonl")

    assert refused.exit_code == 2
    assert "leads out of the volume or folder by a symbolic link" in refused.stderr
    assert "30 rows" in taken.stdout


def test_finetune_check_says_what_to_do_about_pipes_and_standard_input(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")

    pipe, standard = check(tmp_path, "pipe"), check(tmp_path, "-")

    assert (pipe.exit_code, standard.exit_code) == (2, 2)
    assert "pipe is not a regular file but a named pipe; save its content" in pipe.stderr
    assert "standard input can be read only once" in standard.stderr
