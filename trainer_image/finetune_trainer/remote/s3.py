# SPDX-License-Identifier: Apache-2.0
"""`s3://BUCKET/PATH`: Amazon S3 and compatible stores."""

import os
import tempfile
from typing import Any, Final

import aiohttp
from aiobotocore.httpsession import AIOHTTPSession  # type: ignore[import-untyped]
from botocore.awsrequest import AWSPreparedRequest, AWSResponse
from botocore.exceptions import BotoCoreError, ClientError
from fsspec import AbstractFileSystem
from s3fs import S3FileSystem

from finetune_trainer.remote.credentials import AMAZON, Credentials, plain, redact_file
from finetune_trainer.remote.origins import RedirectRefused
from finetune_trainer.remote.remote_folder import CONNECT_SECONDS, STALL_SECONDS

ERRORS: Final = (BotoCoreError, ClientError)
DEFAULT_REGION: Final = "us-east-1"


def open_s3(place: str, credentials: Credentials | None) -> tuple[AbstractFileSystem, str]:
    """Return the file system, and the bucket with its path.

    Without credentials it uses the role that the platform gives the pod's service account, or else anonymous
    access.
    """
    config = {
        "connect_timeout": CONNECT_SECONDS,
        "read_timeout": STALL_SECONDS,
        "retries": {"mode": "standard", "max_attempts": 3},
        # The bucket is in the path, because credentials are for one host.
        "s3": {"addressing_style": "path"},
        # Other stores than Amazon's reject its newer checksums.
        "request_checksum_calculation": "when_required",
        "response_checksum_validation": "when_required",
        "http_session_cls": _WithoutRedirects,
    }
    if credentials is None:
        redact_file("AWS_WEB_IDENTITY_TOKEN_FILE")
        filesystem = S3FileSystem(
            anon="AWS_WEB_IDENTITY_TOKEN_FILE" not in os.environ,
            config_kwargs=config,
            client_kwargs={"region_name": os.environ.get("AWS_REGION", DEFAULT_REGION)},
            skip_instance_cache=True,
            use_listings_cache=False,
        )
    else:
        # Without an endpoint the client finds Amazon's host for the region of the bucket. The environment
        # must not name another one.
        is_amazon = credentials.endpoint == AMAZON
        filesystem = S3FileSystem(
            anon=credentials.access_key_id is None,
            key=credentials.access_key_id,
            secret=plain(credentials.secret_access_key),
            token=plain(credentials.session_token),
            endpoint_url=None if is_amazon else credentials.endpoint,
            config_kwargs={**config, "ignore_configured_endpoint_urls": True},
            client_kwargs={
                "region_name": credentials.region or DEFAULT_REGION,
                "verify": None if credentials.ca_bundle is None else _file_of(credentials.ca_bundle),
            },
            skip_instance_cache=True,
            use_listings_cache=False,
        )
    return filesystem, place.strip("/")


class _WithoutRedirects(AIOHTTPSession):  # type: ignore[misc] # has no types
    """Session that refuses redirects. aiobotocore's own would send a session token to any target."""

    async def _get_session(self, proxy_url: str | None) -> "_Direct":
        return _Direct(await super()._get_session(proxy_url))

    async def send(self, request: AWSPreparedRequest) -> AWSResponse:
        response = await super().send(request)
        place = response.headers.get("location")
        # Amazon's redirect to another region has no location, and botocore handles it.
        if 300 <= response.status_code < 400 and place:
            raise RedirectRefused(
                request.url, place, "credentials are for one server; use that one as endpoint"
            )
        return response


class _Direct:
    """The part of an aiohttp session that aiobotocore uses."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    async def request(self, method: str, **options: Any) -> aiohttp.ClientResponse:
        return await self._session.request(method, **options, allow_redirects=False)


def _file_of(certificates: str) -> str:
    """Write certificates to a file, which is the only form that botocore accepts."""
    with tempfile.NamedTemporaryFile("w", suffix=".pem", delete=False) as file:
        file.write(certificates)
    return file.name
