# SPDX-License-Identifier: Apache-2.0
"""Opens the fsspec file system of a uri, with all rules of this package in force."""

from typing import Final

from fsspec import AbstractFileSystem

from finetune_trainer.contract.references import SecretMount
from finetune_trainer.contract.vocabulary import FailureReason
from finetune_trainer.remote.credentials import Credentials, load_credentials
from finetune_trainer.remote.origins import guard_connections
from finetune_trainer.remote.remote_folder import RemoteFolder
from finetune_trainer.runtime.termination import StageFailure

SCHEMES: Final = ("hf", "https", "s3", "gs", "abfs")


def open_filesystem(uri: str, secret: SecretMount | None) -> RemoteFolder:
    """Open the folder of a remote uri. Sends no request yet.

    Raises StageFailure: INVALID_CONFIG for a malformed uri, INVALID_CREDENTIALS for keys that are not valid
    for the scheme.
    """
    scheme, _, place = uri.partition("://")
    if scheme not in SCHEMES or not place.strip("/"):
        raise StageFailure(
            FailureReason.INVALID_CONFIG,
            f"{uri}: write SCHEME://PLACE with one of {', '.join(f'{name}://' for name in SCHEMES)}",
        )
    credentials = load_credentials(secret, scheme)
    guard_connections()
    filesystem, path, errors = _open(scheme, place, credentials)
    endpoint = "" if credentials is None else credentials.endpoint
    if scheme == "hf":  # without credentials the environment may name a mirror
        endpoint = filesystem.endpoint
    return RemoteFolder(filesystem, path, uri, errors, endpoint)


def _open(
    scheme: str, place: str, credentials: Credentials | None
) -> tuple[AbstractFileSystem, str, tuple[type[Exception], ...]]:
    """Open the client of a scheme. Clients are imported on use, because together they take seconds."""
    match scheme:
        case "hf":
            from finetune_trainer.remote import hub

            return *hub.open_hub(place, credentials), hub.ERRORS
        case "https":
            from finetune_trainer.remote import web

            return *web.open_web(place, credentials), web.ERRORS
        case "s3":
            from finetune_trainer.remote import s3

            return *s3.open_s3(place, credentials), s3.ERRORS
        case "gs":
            from finetune_trainer.remote import google

            return *google.open_google(place, credentials), google.ERRORS
        case _:
            from finetune_trainer.remote import azure

            return *azure.open_azure(place, credentials), azure.ERRORS
