# SPDX-License-Identifier: Apache-2.0
"""Files of a cluster: configuration and image archives."""

import dataclasses
import hashlib
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from tools.cluster import node, toolchain
from tools.cluster.commands import ClusterError
from tools.cluster.containerd import write_program_image
from tools.cluster.layout import Layout, render
from tools.cluster.toolchain import TOOLS, Tool, Trimmed, program, system_program


def test_the_kubelet_never_collects_an_image_that_nobody_can_pull_again(tmp_path: Path) -> None:
    layout = Layout("unit", tmp_path)
    layout.config.mkdir()
    node.write_config(layout)
    kubelet = yaml.safe_load((layout.config / "kubelet.yaml").read_text())
    assert kubelet["imageGCHighThresholdPercent"] == 100
    assert kubelet["containerRuntimeEndpoint"] == f"unix://{layout.containerd_socket}"
    assert yaml.safe_load((layout.config / "kube-proxy.yaml").read_text())["hostnameOverride"] == "unit-node"


def test_the_default_storage_class_is_ours() -> None:
    storage_class = yaml.safe_load(render("storage-class.yaml", provisioner="example.test/p"))
    assert storage_class["provisioner"] == "example.test/p"
    assert storage_class["metadata"]["annotations"]["storageclass.kubernetes.io/is-default-class"] == "true"


def test_a_template_with_a_value_missing_is_an_error() -> None:
    with pytest.raises(KeyError, match="dns_address"):
        render("coredns.yaml", image="localhost/coredns:1")


def test_an_image_archive_names_every_blob_by_its_digest(tmp_path: Path) -> None:
    hello = tmp_path / "hello"
    hello.write_bytes(b"#!/bin/sh\n")
    write_program_image(tmp_path / "hello.tar", "localhost/hello:1", hello, user=65532)
    with tarfile.open(tmp_path / "hello.tar") as archive:
        contents = {member.name: archive.extractfile(member).read() for member in archive}  # type: ignore[union-attr]
    for name, content in contents.items():
        if name.startswith("blobs/"):
            assert Path(name).name == hashlib.sha256(content).hexdigest()

    def blob(descriptor: dict[str, Any]) -> Any:
        return json.loads(contents["blobs/sha256/" + descriptor["digest"].removeprefix("sha256:")])

    listed = json.loads(contents["index.json"])["manifests"][0]
    config = blob(blob(listed)["config"])
    assert listed["annotations"]["io.containerd.image.name"] == "localhost/hello:1"
    assert config["config"] == {"Entrypoint": ["/hello"], "User": "65532:65532"}


@pytest.mark.parametrize("tool", TOOLS, ids=lambda tool: tool.name)
def test_every_tool_is_pinned_and_has_a_folder_of_its_own_in_the_cache(tool: Tool) -> None:
    assert tool.version.startswith("v") or tool.module is None
    assert program(tool.programs[0]).parent.name == f"{tool.name}-{tool.key}"


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A downloaded module with a folder of files and a folder of source."""
    files = ("go.mod", "main.go", "main_test.go", "README.md", "heavy/heavy.go", "config/crd/kinds.yaml")
    for name in files:
        path = tmp_path / "module" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(toolchain, "download", lambda *_: tmp_path / "module")
    monkeypatch.setattr(toolchain, "go_compiler", lambda: "go")
    return tmp_path / "module"


@pytest.fixture
def peer(tmp_path: Path) -> Tool:
    """A tool that replaces the folder `heavy` of a module by a file of its own."""
    stub = tmp_path / "modules" / "peer" / "part" / "heavy" / "stub.go"
    stub.parent.mkdir(parents=True)
    stub.write_text("stub")
    trimmed = (Trimmed("example.com/part", "part", ("heavy",)),)
    return Tool("peer", (), trimmed=trimmed, modules=tmp_path / "modules")


def test_a_trimmed_module_is_compiled_without_its_tests_and_the_folders_left_out(
    module: Path, peer: Tool
) -> None:
    with toolchain._source(peer) as source:
        found = {str(path.relative_to(source)) for path in source.rglob("*") if path.is_file()}
    assert found == {"part/go.mod", "part/main.go", "part/heavy/stub.go"}
    assert not (peer.source / "part" / "go.mod").exists()


def test_files_of_a_module_are_installed_beside_the_programs_and_can_be_removed(
    module: Path, peer: Tool
) -> None:
    (module / "config" / "crd").chmod(0o555)
    tool = dataclasses.replace(peer, files=(("example.com/peer", "config"),))
    assert not tool.is_built()
    toolchain.ensure((tool,))
    assert tool.is_built()
    assert (tool.folder / "config" / "crd" / "kinds.yaml").read_text() == "config/crd/kinds.yaml"
    assert (tool.folder / "config" / "crd").stat().st_mode & 0o200


def test_what_decides_the_programs_decides_their_folder_and_nothing_else_does(peer: Tool) -> None:
    others = [
        dataclasses.replace(peer, files=(("example.com/peer", "config"),)),
        dataclasses.replace(peer, trimmed=()),
        dataclasses.replace(peer, tags=("no_btrfs",)),
    ]
    keys = [peer.key, *(each.key for each in others)]
    (peer.source / "part" / "heavy" / "stub.go").write_text("another stub")
    keys.append(peer.key)
    assert len(set(keys)) == len(keys)
    assert dataclasses.replace(peer, programs=("peer",)).key == peer.key


def test_a_program_that_is_not_installed_is_named_with_its_package() -> None:
    with pytest.raises(ClusterError, match="distribution package the-package"):
        system_program("no-such-program", "the-package")
