# SPDX-License-Identifier: Apache-2.0
"""`abfs://CONTAINER/PATH`: Azure Blob Storage."""

import os
from typing import Final
from urllib.parse import urlsplit

from adlfs import AzureBlobFileSystem
from azure.core.exceptions import AzureError
from fsspec import AbstractFileSystem

from finetune_trainer.contract.vocabulary import FailureReason
from finetune_trainer.remote.credentials import Credentials, plain, redact_file
from finetune_trainer.remote.remote_folder import CONNECT_SECONDS, STALL_SECONDS
from finetune_trainer.runtime.termination import StageFailure

ERRORS: Final = (AzureError,)


def open_azure(place: str, credentials: Credentials | None) -> tuple[AbstractFileSystem, str]:
    """Return the file system, and the container with its path.

    `abfs://CONTAINER@ACCOUNT.dfs.core.windows.net/PATH` names the account; the short form takes it from the
    endpoint. Without credentials it uses the workload identity of the pod, or else anonymous access.
    Raises StageFailure (INVALID_CONFIG) if neither names the account.
    """
    container, _, path = place.strip("/").partition("/")
    container, _, host = container.partition("@")
    options = {
        "connection_timeout": CONNECT_SECONDS,
        "read_timeout": STALL_SECONDS,
        "skip_instance_cache": True,
        "use_listings_cache": False,
    }
    if credentials is not None:
        account = _account(credentials)
        if host and host.partition(".")[0] != account:
            raise StageFailure(
                FailureReason.INVALID_CONFIG,
                f"abfs://{place} names the account {host.partition('.')[0]}, but Secret"
                f" {credentials.secret_name} is for {account}: correct one of them",
            )
        filesystem = AzureBlobFileSystem(connection_string=_connection_string(credentials), **options)
    elif host:
        redact_file("AZURE_FEDERATED_TOKEN_FILE")
        filesystem = AzureBlobFileSystem(
            account_name=host.partition(".")[0],
            account_host=host.replace(".dfs.", ".blob."),
            anon="AZURE_FEDERATED_TOKEN_FILE" not in os.environ,
            **options,
        )
    else:
        raise StageFailure(
            FailureReason.INVALID_CONFIG,
            f"abfs://{place} does not name an account: write"
            f" abfs://{container}@ACCOUNT.dfs.core.windows.net/PATH, or set credentials with the account's"
            " endpoint",
        )
    return filesystem, f"{container}/{path}".rstrip("/")


def _account(credentials: Credentials) -> str:
    """Name of the storage account: its own key, or the first label of the endpoint's host."""
    return credentials.account_name or (urlsplit(credentials.endpoint).hostname or "").partition(".")[0]


def _connection_string(credentials: Credentials) -> str:
    parts = {"BlobEndpoint": credentials.endpoint, "AccountName": _account(credentials)}
    if credentials.account_key is not None:
        parts["AccountKey"] = plain(credentials.account_key) or ""
    elif credentials.sas_token is not None:
        parts["SharedAccessSignature"] = (plain(credentials.sas_token) or "").removeprefix("?")
    return ";".join(f"{name}={value}" for name, value in parts.items())
