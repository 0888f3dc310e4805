# SPDX-License-Identifier: Apache-2.0
"""`hf://ORG/NAME` and `hf://datasets/ORG/NAME/PATH`: the Hugging Face Hub, or a compatible server."""

import ssl
from collections.abc import Callable
from dataclasses import replace
from typing import Final

import httpx2
from fsspec import AbstractFileSystem
from huggingface_hub import HfApi, HfFileSystem, set_client_factory
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.hf_file_system import HfFileSystemResolvedRepositoryPath

from finetune_trainer.contract.vocabulary import FailureReason
from finetune_trainer.remote.credentials import Credentials
from finetune_trainer.remote.origins import origin_of, require_https
from finetune_trainer.remote.remote_folder import CONNECT_SECONDS, STALL_SECONDS, RemoteFolder
from finetune_trainer.runtime.termination import StageFailure

ERRORS: Final = (httpx2.HTTPError, HfHubHTTPError)


def open_hub(place: str, credentials: Credentials | None) -> tuple[AbstractFileSystem, str]:
    """Return the file system, and the repository with its path.

    Without credentials it uses the library's endpoint, which HF_ENDPOINT overrides, and no token, not even
    one from the environment.
    """
    endpoint = None if credentials is None else credentials.endpoint
    filesystem = HfFileSystem(endpoint=endpoint, token=False, skip_instance_cache=True)
    set_client_factory(_client_factory(credentials, filesystem.endpoint))
    return filesystem, place.strip("/")


def pin_revision(folder: RemoteFolder, revision: str | None) -> tuple[RemoteFolder, str]:
    """Resolve a revision to its current commit. Returns the folder at that commit, and the commit.

    Raises FileNotFoundError and `ERRORS`; StageFailure (INVALID_CONFIG) if the path is not a repository.
    """
    filesystem: HfFileSystem = folder.filesystem
    try:
        resolved = filesystem.resolve_path(folder.path, revision=revision)
    except (ValueError, NotImplementedError) as error:
        raise StageFailure(FailureReason.INVALID_CONFIG, f"{folder.uri}: {error}") from error
    if not isinstance(resolved, HfFileSystemResolvedRepositoryPath):
        raise StageFailure(FailureReason.INVALID_CONFIG, f"{folder.uri} is a bucket, not a repository")
    api = HfApi(endpoint=filesystem.endpoint, token=False)
    commit = api.repo_info(resolved.repo_id, repo_type=resolved.repo_type, revision=resolved.revision).sha
    if commit is None:
        raise FileNotFoundError(f"{resolved.repo_id} has no revision {resolved.revision}")
    kind = "" if resolved.repo_type == "model" else f"{resolved.repo_type}s/"
    path = f"{kind}{resolved.repo_id}@{commit}/{resolved.path_in_repo}".rstrip("/")
    return replace(folder, path=path), commit


def _client_factory(credentials: Credentials | None, endpoint: str) -> Callable[[], httpx2.Client]:
    """Return a factory of clients that send the token to the endpoint only, not to targets of redirects."""
    origin = None if credentials is None else origin_of(credentials.endpoint)
    header = None if credentials is None else credentials.authorization
    trust: ssl.SSLContext | bool = True if credentials is None else credentials.ssl_context()

    def authorize(request: httpx2.Request) -> None:
        require_https(endpoint, str(request.url))
        if header is not None and origin_of(str(request.url)) == origin:
            request.headers["Authorization"] = header

    return lambda: httpx2.Client(
        event_hooks={"request": [authorize]},
        follow_redirects=True,
        timeout=httpx2.Timeout(STALL_SECONDS, connect=CONNECT_SECONDS),
        verify=trust,
    )
