"""Files of a cluster: configuration and image archives."""

import hashlib
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from tools.cluster import node
from tools.cluster.errors import ClusterError
from tools.cluster.imagearchive import write_program_image
from tools.cluster.layout import Layout
from tools.cluster.templates import render
from tools.cluster.toolchain import TOOLS, Tool, program, system_program


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


def test_a_program_that_is_not_installed_is_named_with_its_package() -> None:
    with pytest.raises(ClusterError, match="distribution package the-package"):
        system_program("no-such-program", "the-package")
