# SPDX-License-Identifier: Apache-2.0
"""The workflows in .github name targets, files and actions that exist, and ask for few rights."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yaml"))
TARGETS = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def steps(workflow: Path) -> list[dict[str, Any]]:
    jobs = yaml.safe_load(workflow.read_text())["jobs"]
    return [step for job in jobs.values() for step in job["steps"]]


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_runs_targets_and_files_that_exist(workflow: Path) -> None:
    commands = "\n".join(step.get("run", "") for step in steps(workflow))
    assert set(re.findall(r"^make ([a-z0-9-]+)", commands, re.MULTILINE)) <= TARGETS
    for name in re.findall(r"(?<![\w/])(\.ci/\w+)", commands):
        assert (ROOT / name).exists()
    for module in re.findall(r"-m (tools\.[\w.]+)", commands):
        assert list(ROOT.glob(f"{module.replace('.', '/')}*"))


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_pins_its_actions_and_reads_only(workflow: Path) -> None:
    document = yaml.safe_load(workflow.read_text())
    assert document["permissions"] == {"contents": "read"}
    for step in steps(workflow):
        if "uses" in step:
            assert re.fullmatch(r"[\w-]+/[\w-]+@(v\d+|[0-9a-f]{40})", step["uses"])
        if step.get("uses", "").startswith("actions/checkout@"):
            assert step["with"].pop("persist-credentials") is False
            assert step["with"] in ({}, {"fetch-depth": 0})


def test_only_the_release_gets_a_token_for_signing() -> None:
    requested = {
        path.stem
        for path in WORKFLOWS
        for job in yaml.safe_load(path.read_text())["jobs"].values()
        if "id-token" in job.get("permissions", {})
    }
    assert requested == {"release"}


COSIGN = r"""#!/bin/sh
set -eu
case "$1 $*" in
"verify-attestation "*|"verify "*) ;;
"attest "*--predicate*) cp "$RUNNER_TEMP/predicate.json" "$(mktemp -p "$RUNNER_TEMP/attested")" ;;
"attest "*) echo "predicate cannot be empty" >&2; exit 1 ;;
esac
echo "$*" >> "$RUNNER_TEMP/calls"
"""
"""Refuses what cosign refuses: `cosign attest` has the option --statement, and does not read it."""


RELEASE = ROOT / ".github" / "workflows" / "release.yaml"
needs_jq = pytest.mark.skipif(shutil.which("jq") is None, reason="jq is not installed")


def calls_of_cosign(tmp_path: Path, title: str) -> list[str]:
    """Arguments with which a step of the release calls cosign, for an image and a chart."""
    (step,) = [step for step in steps(RELEASE) if step.get("name") == title]
    folder = tmp_path / "build" / "release"
    for path in (folder, tmp_path / "programs", tmp_path / "temporary" / "attested"):
        path.mkdir(parents=True)
    (tmp_path / "programs" / "cosign").write_text(COSIGN)
    (tmp_path / "programs" / "cosign").chmod(0o755)
    artifacts = [
        {"name": name, "repository": f"registry.test/{name}", "digest": f"sha256:{name}"}
        for name in ("image", "chart")
    ]
    (folder / "release.json").write_text(json.dumps({"artifacts": artifacts}))
    for name in ("image.provenance", "image.sbom", "chart.provenance"):
        statement = {"predicateType": f"https://{name}.test", "predicate": {"of": name}}
        (folder / f"{name}.json").write_text(json.dumps(statement))
    temporary = tmp_path / "temporary"
    programs = f"{tmp_path / 'programs'}:{os.environ['PATH']}"

    subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]],
        cwd=tmp_path,
        env={"PATH": programs, "RUNNER_TEMP": str(temporary), "IDENTITY": "https://workflow.test"},
        check=True,
    )
    return (temporary / "calls").read_text().splitlines()


@needs_jq
def test_the_release_signs_every_artifact_and_attests_each_statement(tmp_path: Path) -> None:
    calls = calls_of_cosign(tmp_path, "Sign the statements")

    for name, types in (("image", ("provenance", "sbom")), ("chart", ("provenance",))):
        reference = f"registry.test/{name}@sha256:{name}"
        assert f"sign --yes {reference}" in calls
        for each in types:
            (found,) = [call for call in calls if f"--type https://{name}.{each}.test " in call]
            assert found.startswith("attest --yes")
            assert found.endswith(f" {reference}")
    assert len(calls) == 5
    files = (tmp_path / "temporary" / "attested").iterdir()
    attested = [json.loads(file.read_text())["of"] for file in files]
    assert sorted(attested) == ["chart.provenance", "image.provenance", "image.sbom"]


@needs_jq
def test_the_release_verifies_what_it_signed(tmp_path: Path) -> None:
    signed = calls_of_cosign(tmp_path / "signing", "Sign the statements")
    verified = calls_of_cosign(tmp_path / "verifying", "Verify the signatures")

    assert all("--certificate-identity https://workflow.test" in call for call in verified)
    assert len(verified) == len(signed)
    for call in signed:
        artifact, types = call.split()[-1], re.findall("--type .*? ", call)
        command = "verify-attestation " if types else "verify "
        assert any(
            each.startswith(command) and each.endswith(artifact) and (not types or types[0] in each)
            for each in verified
        )


def test_the_release_is_tagged_after_its_signatures_are_verified() -> None:
    names = [step.get("name") or step.get("run") for step in steps(RELEASE)]
    order = ["make release", "Sign the statements", "Verify the signatures", "make release-tags"]
    assert [name for name in names if name in order] == order
