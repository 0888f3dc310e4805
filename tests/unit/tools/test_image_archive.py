# SPDX-License-Identifier: Apache-2.0
import hashlib
import io
import json
import tarfile
from pathlib import Path

from tools.images.buildah import Image, Layer, chain_id, marker_layer, read_docker_archive, write_oci_archive


def tar_of(files: dict[str, bytes]) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return content.getvalue()


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def docker_archive(path: Path, layers: list[bytes]) -> Path:
    configuration = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"User": "65532:65532", "Entrypoint": ["python3"]},
        "rootfs": {"type": "layers", "diff_ids": [digest_of(layer) for layer in layers]},
        "history": [{"created_by": "a test"}],
    }
    names = [f"{digest_of(layer)[7:]}.tar" for layer in layers]
    manifest = [{"Config": "config.json", "RepoTags": ["localhost/x:1"], "Layers": names}]
    path.write_bytes(
        tar_of(
            {
                **dict(zip(names, layers, strict=True)),
                "config.json": json.dumps(configuration).encode(),
                "manifest.json": json.dumps(manifest).encode(),
            }
        )
    )
    return path


def members(archive: Path) -> dict[str, bytes]:
    with tarfile.open(archive) as tar:
        return {
            entry.name: content.read() for entry in tar.getmembers() if (content := tar.extractfile(entry))
        }


BASE = tar_of({"etc/os-release": b"ID=debian\n"})
CODE = tar_of({"app/code.py": b"print('hello')\n"})


def test_an_archive_leaves_out_the_layers_that_the_receiver_has(tmp_path: Path) -> None:
    image = read_docker_archive(docker_archive(tmp_path / "docker.tar", [BASE, CODE]))

    write_oci_archive(tmp_path / "oci.tar", "localhost/x:1", image, present={digest_of(BASE)})

    found = members(tmp_path / "oci.tar")
    assert f"blobs/sha256/{digest_of(BASE)[7:]}" not in found
    assert found[f"blobs/sha256/{digest_of(CODE)[7:]}"] == CODE


def test_an_archive_names_all_layers_and_every_digest_is_right(tmp_path: Path) -> None:
    image = read_docker_archive(docker_archive(tmp_path / "docker.tar", [BASE, CODE]))

    write_oci_archive(tmp_path / "oci.tar", "localhost/x:1", image, present=set())

    found = members(tmp_path / "oci.tar")
    index = json.loads(found["index.json"])
    (descriptor,) = index["manifests"]
    assert descriptor["annotations"]["io.containerd.image.name"] == "localhost/x:1"
    manifest = json.loads(found[f"blobs/sha256/{descriptor['digest'][7:]}"])
    assert [layer["digest"] for layer in manifest["layers"]] == [digest_of(BASE), digest_of(CODE)]
    assert [layer["size"] for layer in manifest["layers"]] == [len(BASE), len(CODE)]
    configuration = json.loads(found[f"blobs/sha256/{manifest['config']['digest'][7:]}"])
    assert configuration["rootfs"]["diff_ids"] == [digest_of(BASE), digest_of(CODE)]
    assert configuration["config"]["User"] == "65532:65532"
    for name, content in found.items():
        if name.startswith("blobs/"):
            assert name == f"blobs/sha256/{hashlib.sha256(content).hexdigest()}"


def test_a_layer_is_put_between_the_parents_and_the_code(tmp_path: Path) -> None:
    marker = marker_layer(tmp_path / "marker.tar", ".cpu-0123456789ab")
    image = read_docker_archive(docker_archive(tmp_path / "docker.tar", [BASE, CODE]))

    assert image.with_layer(1, marker).digests == [digest_of(BASE), marker.digest, digest_of(CODE)]


def test_the_marker_of_the_same_packages_is_the_same_layer(tmp_path: Path) -> None:
    first = marker_layer(tmp_path / "1.tar", ".cpu-0123456789ab")
    again = marker_layer(tmp_path / "2.tar", ".cpu-0123456789ab")
    other = marker_layer(tmp_path / "3.tar", ".cpu-ba9876543210")

    assert first.digest == again.digest != other.digest


def test_a_chain_of_one_layer_is_that_layer_and_a_longer_one_hashes_pairs() -> None:
    # The recurrence of the OCI image specification, "Layer ChainID".
    pair = digest_of(f"{digest_of(BASE)} {digest_of(CODE)}".encode())

    assert chain_id([digest_of(BASE)]) == digest_of(BASE)
    assert chain_id([digest_of(BASE), digest_of(CODE)]) == pair
    assert chain_id([digest_of(BASE), digest_of(CODE), digest_of(b"x")]) == digest_of(
        f"{pair} {digest_of(b'x')}".encode()
    )


def test_an_image_lists_its_layers_lowest_first(tmp_path: Path) -> None:
    layers = tuple(Layer(digest_of(content), tmp_path, "x") for content in (BASE, CODE))

    assert Image({}, layers).digests == [digest_of(BASE), digest_of(CODE)]
