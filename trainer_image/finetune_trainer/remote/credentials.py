# SPDX-License-Identifier: Apache-2.0
"""Credentials from a mounted Secret of type `finetune.dev/credentials`, with one file per key."""

import base64
import json
import os
import ssl
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Final, Self
from urllib.parse import parse_qsl

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator
from pydantic.alias_generators import to_camel

from finetune_trainer.contract.outcomes import ExitCode, FailureReason
from finetune_trainer.contract.references import SecretMount
from finetune_trainer.remote.origin import check_endpoint
from finetune_trainer.runtime.failure import StageFailure
from finetune_trainer.runtime.scrubbing import MIN_PUBLIC_LENGTH, SCRUBBER

PUBLIC: Final = frozenset({"endpoint", "region", "caBundle", "accountName"})
"""Keys whose values may appear in messages."""
NAMES: Final = frozenset({"username", "accessKeyId"})
"""Keys whose values grant no access on their own."""
KEYS: Final[dict[str, tuple[str, ...]]] = {
    "hf": ("endpoint", "token", "caBundle"),
    "https": ("endpoint", "token", "username", "password", "caBundle"),
    "s3": ("endpoint", "accessKeyId", "secretAccessKey", "sessionToken", "region", "caBundle"),
    "gs": ("endpoint", "serviceAccountKey", "token", "caBundle"),
    "abfs": ("endpoint", "accountName", "accountKey", "sasToken"),
}
"""Valid keys per scheme."""


def _is_certificate(text: str) -> str:
    try:
        ssl.create_default_context(cadata=text)
    except (ssl.SSLError, ValueError) as error:
        raise ValueError("it must contain PEM certificates, from BEGIN to END CERTIFICATE") from error
    return text


class Credentials(BaseModel):
    """Credentials, and the only endpoint that receives them. Values are never printed."""

    model_config = ConfigDict(frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True)

    endpoint: Annotated[str, AfterValidator(check_endpoint)]
    """Scheme, host and port, such as `https://s3.eu-west-1.amazonaws.com`."""
    ca_bundle: Annotated[str, AfterValidator(_is_certificate)] | None = None
    """PEM certificates of authorities to trust for the endpoint, in addition to the system's."""
    token: SecretStr | None = None
    username: str | None = None
    password: SecretStr | None = None
    access_key_id: str | None = None
    secret_access_key: SecretStr | None = None
    session_token: SecretStr | None = None
    region: str | None = None
    service_account_key: SecretStr | None = None
    """Content of the JSON key file of a Google service account."""
    account_name: str | None = None
    account_key: SecretStr | None = None
    sas_token: SecretStr | None = None
    secret_name: Annotated[str, Field(alias="secret name")] = ""
    """Name of the Secret, for messages. No key of a Secret can have this alias."""

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        pairs = (
            ("accessKeyId", self.access_key_id, "secretAccessKey", self.secret_access_key),
            ("username", self.username, "password", self.password),
        )
        for one, first, other, second in pairs:
            if (first is None) != (second is None):
                missing, present = (one, other) if first is None else (other, one)
                raise ValueError(f"key {missing} is missing; {present} needs it")
        if self.session_token is not None and self.access_key_id is None:
            raise ValueError("key accessKeyId is missing; sessionToken needs it")
        return self

    def require_keys_of(self, scheme: str) -> None:
        """Raise StageFailure (INVALID_CREDENTIALS) naming a key that is not valid for this scheme."""
        for key in self.model_dump(by_alias=True, exclude_none=True, exclude={"secret_name"}):
            if key not in KEYS[scheme]:
                valid = ", ".join(KEYS[scheme])
                raise invalid(
                    self.secret_name, f"key {key} is not valid for {scheme}://; valid keys are {valid}"
                )

    @property
    def authorization(self) -> str | None:
        """Value of the HTTP header Authorization: a bearer token, or a user name with a password."""
        if self.token is not None:
            return f"Bearer {self.token.get_secret_value()}"
        if self.username is not None and self.password is not None:
            pair = f"{self.username}:{self.password.get_secret_value()}"
            return f"Basic {base64.b64encode(pair.encode()).decode()}"
        return None

    def ssl_context(self) -> ssl.SSLContext:
        """Build a context that trusts the system's certificates and those of `ca_bundle`."""
        context = ssl.create_default_context()
        if self.ca_bundle is not None:
            context.load_verify_locations(cadata=self.ca_bundle)
        return context


def load_credentials(mount: SecretMount | None) -> Credentials | None:
    """Load the credentials from a mounted Secret. Returns None without a mount.

    Raises StageFailure (INVALID_CREDENTIALS) naming the Secret, and the missing or invalid key.
    """
    if mount is None:
        return None
    try:
        # The kubelet's own files begin with two dots.
        files = sorted(path for path in Path(mount.path).iterdir() if not path.name.startswith(".."))
        values = {path.name: path.read_text(encoding="utf-8").strip() for path in files}
    except FileNotFoundError:
        values = {}
    except (OSError, UnicodeDecodeError) as error:
        raise invalid(mount.name, f"it cannot be read: {error}") from error
    if not values:
        raise invalid(mount.name, "it does not exist in this namespace, or is empty")
    _redact(values)
    try:
        credentials = Credentials.model_validate(
            {**values, "secret name": mount.name}, by_alias=True, by_name=False
        )
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        raise invalid(mount.name, _describe(problem["type"], problem["loc"], problem["msg"])) from None
    SCRUBBER.add(credentials.authorization)
    return credentials


def redact_file(variable: str) -> None:
    """Redact the content of the file that an environment variable names, if it is set."""
    path = os.environ.get(variable)
    if path is not None:
        with suppress(OSError, UnicodeDecodeError):  # the library that reads it reports the error
            SCRUBBER.add(Path(path).read_text(encoding="utf-8"))


def plain(value: SecretStr | None) -> str | None:
    """Return the value of a secret, for the library that sends it."""
    return None if value is None else value.get_secret_value()


def invalid(secret: str, what: str) -> StageFailure:
    """Build the failure for unusable credentials."""
    return StageFailure(
        FailureReason.INVALID_CREDENTIALS,
        f"Secret {secret}: {what}; correct the Secret: docs/storage.md lists its keys",
        ExitCode.BAD_CONFIG,
    )


def _redact(values: Mapping[str, str]) -> None:
    """Redact the values from messages. An unknown key may contain a credential too."""
    for key, value in values.items():
        if key == "sasToken":
            SCRUBBER.add(value, *(part for name, part in parse_qsl(value.removeprefix("?")) if name == "sig"))
        elif key == "serviceAccountKey":
            SCRUBBER.add(*_secret_parts(value))
        elif key in NAMES:
            SCRUBBER.add(value if len(value) >= MIN_PUBLIC_LENGTH else None)
        elif key not in PUBLIC:
            SCRUBBER.add(value)


def _secret_parts(key: str) -> Iterator[str]:
    """Yield the secret parts of a service account's key. The other parts are the same in all keys."""
    try:
        fields = json.loads(key)
        yield fields["private_key_id"]
        yield from (line for line in fields["private_key"].splitlines() if "PRIVATE KEY" not in line)
    except (ValueError, TypeError, KeyError, AttributeError):
        yield key


def _describe(kind: str, location: tuple[int | str, ...], message: str) -> str:
    key = ".".join(map(str, location))
    if kind == "missing":
        return f"key {key} is missing"
    if kind == "extra_forbidden":
        return f"key {key} is unknown"
    reason = message.removeprefix("Value error, ")
    return f"key {key}: {reason}" if key else reason
