# SPDX-License-Identifier: Apache-2.0
"""`gs://BUCKET/PATH`: Google Cloud Storage over its JSON API."""

import json
import os
from typing import Any, Final

import aiohttp
from fsspec import AbstractFileSystem
from fsspec.asyn import get_loop, sync
from gcsfs.core import GCSFileSystem
from gcsfs.retry import HttpError
from google.auth.exceptions import GoogleAuthError
from google.oauth2.credentials import Credentials as AccessToken
from google.oauth2.service_account import Credentials as ServiceAccount

from finetune_trainer.remote.credentials import PROVIDER_HOSTS, Credentials, invalid, plain
from finetune_trainer.remote.web import client_options

ERRORS: Final = (HttpError, GoogleAuthError, aiohttp.ClientError)
SCOPE: Final = "https://www.googleapis.com/auth/devstorage.read_write"


def open_google(place: str, credentials: Credentials | None) -> tuple[AbstractFileSystem, str]:
    """Return the file system, and the bucket with its path.

    Without credentials it uses the identity in the file that GOOGLE_APPLICATION_CREDENTIALS names, or else
    anonymous access.
    """
    token: Any = _identity(credentials)
    if credentials is None and "GOOGLE_APPLICATION_CREDENTIALS" in os.environ:
        token = "google_default"
    endpoint = None if credentials is None else credentials.endpoint
    filesystem = GCSFileSystem(
        token=token,
        endpoint_url=endpoint,
        session_kwargs=sync(get_loop(), client_options, credentials, endpoint or PROVIDER_HOSTS["gs"]),
        skip_instance_cache=True,
        use_listings_cache=False,
    )
    return filesystem, place.strip("/")


def _identity(credentials: Credentials | None) -> Any:
    """Return the token for gcsfs. gcsfs would send a plain string to Google for a check."""
    if credentials is not None and credentials.token is not None:
        return AccessToken(plain(credentials.token))
    if credentials is not None and credentials.service_account_key is not None:
        try:
            return ServiceAccount.from_service_account_info(
                json.loads(credentials.service_account_key.get_secret_value()), scopes=[SCOPE]
            )
        except ValueError as error:
            raise invalid(
                credentials.secret_name,
                f"the JSON key of the service account is not valid: {error}",
            ) from None
    return "anon"
