# SPDX-License-Identifier: Apache-2.0
"""Digests and types that a server reports for its models."""

from pathlib import Path

from finetune_trainer.contract.serving import ServedModel
from finetune_trainer.manifest import MANIFEST_NAME, Manifest
from finetune_trainer.serve.served_models import ServerIdentity, read_identities
from tests.trainer.serve.endpoint import serve_config


def fetched(folder: Path) -> str:
    folder.mkdir()
    (folder / "config.json").write_text(folder.name)
    manifest = Manifest.of(folder)
    (folder / MANIFEST_NAME).write_bytes(manifest.to_bytes())
    return manifest.digest


def test_each_served_name_has_the_digest_of_what_was_fetched(tmp_path: Path) -> None:
    base, adapter = fetched(tmp_path / "base-folder"), fetched(tmp_path / "tickets")
    models = (ServedModel(name="tickets", folder="tickets"), ServedModel(name="by-hand", folder="by-hand"))
    config = serve_config(tmp_path, base_folder="base-folder", models=models)

    assert list(read_identities(config)) == [
        ServerIdentity("base", base, "Base"),
        ServerIdentity("tickets", adapter, "Adapter"),
        ServerIdentity("by-hand", "", "Adapter"),
    ]


def test_a_full_model_stands_alone(tmp_path: Path) -> None:
    whole = fetched(tmp_path / "whole")
    models = (ServedModel(name="tuned", folder="whole", type="Full"),)

    assert list(read_identities(serve_config(tmp_path, models=models))) == [
        ServerIdentity("tuned", whole, "Full")
    ]
