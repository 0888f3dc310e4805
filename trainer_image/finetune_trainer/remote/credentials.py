# SPDX-License-Identifier: Apache-2.0
"""Credentials from a mounted Secret, with one file per key, and the only server that receives them.

The keys have our names, or those that the provider's own programs give them.
"""

import base64
import json
import os
import re
import ssl
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Final
from urllib.parse import parse_qsl

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, ValidationError
from pydantic.alias_generators import to_camel

from finetune_trainer.contract.references import SecretMount
from finetune_trainer.contract.vocabulary import ExitCode, FailureReason, join_names
from finetune_trainer.remote.origins import check_endpoint
from finetune_trainer.runtime.logs import MIN_PUBLIC_LENGTH, SCRUBBER
from finetune_trainer.runtime.termination import StageFailure

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
CONNECTION_STRING: Final = "AZURE_STORAGE_CONNECTION_STRING"
"""Key whose value has the values of several keys."""
PROVIDER_KEYS: Final[dict[str, dict[str, str]]] = {
    "hf": {"HF_TOKEN": "token", "HF_ENDPOINT": "endpoint"},
    "https": {},
    "s3": {
        "AWS_ACCESS_KEY_ID": "accessKeyId",
        "AWS_SECRET_ACCESS_KEY": "secretAccessKey",
        "AWS_SESSION_TOKEN": "sessionToken",
        "AWS_REGION": "region",
        "AWS_DEFAULT_REGION": "region",
        "AWS_ENDPOINT_URL": "endpoint",
        "AWS_ENDPOINT_URL_S3": "endpoint",
    },
    "gs": {
        "GOOGLE_APPLICATION_CREDENTIALS": "serviceAccountKey",
        "GOOGLE_APPLICATION_CREDENTIALS_JSON": "serviceAccountKey",
        "key.json": "serviceAccountKey",
    },
    "abfs": {
        "AZURE_STORAGE_ACCOUNT": "accountName",
        "AZURE_STORAGE_KEY": "accountKey",
        "AZURE_STORAGE_SAS_TOKEN": "sasToken",
        CONNECTION_STRING: CONNECTION_STRING,
    },
}
"""Names of keys by the programs of the provider, per scheme, with our names for them."""
AMAZON: Final = "https://s3.amazonaws.com"
"""Amazon S3, whose host depends on the region of a bucket."""
PROVIDER_HOSTS: Final = {
    "hf": "https://huggingface.co",
    "s3": AMAZON,
    "gs": "https://storage.googleapis.com",
}
"""The provider's own server per scheme. That of Azure has the name of the account in it."""
OF_ONE_PROVIDER: Final = frozenset(
    {
        *("accessKeyId", "secretAccessKey", "sessionToken", "region"),
        *("serviceAccountKey", "accountName", "accountKey", "sasToken"),
    }
)
"""Keys of ours that say by their name whose they are. `token` does not, and needs an endpoint."""
NEEDED_KEYS: Final = {
    "accessKeyId": "secretAccessKey",
    "secretAccessKey": "accessKeyId",
    "sessionToken": "accessKeyId",
    "username": "password",
    "password": "username",
}
"""Keys, and the one that each of them needs."""
AZURE_ACCOUNT: Final = re.compile(r"[a-z0-9]{3,24}")
REFUSED_GOOGLE_TYPES: Final = {
    "external_account": "which may name addresses and programs that a pod would contact or start",
    "external_account_authorized_user": "which may name addresses that a pod would contact",
    "impersonated_service_account": "which may name addresses and programs that a pod would contact or start",
    "authorized_user": "which is the login of a person",
}
"""Types of Google's credential files other than the key of a service account, and why they are refused."""
SERVICE_PRINCIPAL: Final = frozenset({"AZURE_CLIENT_ID", "AZURE_CLIENT_SECRET", "AZURE_TENANT_ID"})


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
    """Scheme, host and port, such as `https://minio.example:9000`."""
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


def load_credentials(mount: SecretMount | None, scheme: str = "https") -> Credentials | None:
    """Load the credentials for a scheme of `KEYS` from a mounted Secret. Returns None without a mount.

    Keys of other providers, by their own names, are ignored: teams keep them in one Secret.
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
    names: dict[str, str] = {}
    try:
        given = _GivenKeys(values, scheme)
        names = given.names
        credentials = Credentials.model_validate(
            {**given.checked(), "secret name": mount.name}, by_alias=True, by_name=False
        )
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        key = ".".join(str(names.get(str(part), part)) for part in problem["loc"])
        reason = problem["msg"].removeprefix("Value error, ")
        raise invalid(mount.name, f"key {key}: {reason}") from None
    except ValueError as error:
        raise invalid(mount.name, str(error)) from None
    SCRUBBER.add(credentials.authorization)
    return credentials


def valid_keys(scheme: str) -> str:
    """The keys of a scheme, for messages."""
    own, of_provider = ", ".join(KEYS[scheme]), ", ".join(PROVIDER_KEYS[scheme])
    return f"{own}; or {of_provider}" if of_provider else own


class _GivenKeys:
    """The keys of a Secret for one scheme, by our names. Methods raise ValueError naming the key."""

    def __init__(self, values: Mapping[str, str], scheme: str) -> None:
        self._scheme = scheme
        self._values: dict[str, str] = {}
        self.names: dict[str, str] = {}
        """The key of the Secret that gave each value."""
        others = {name for keys in PROVIDER_KEYS.values() for name in keys} - PROVIDER_KEYS[scheme].keys()
        others |= SERVICE_PRINCIPAL if scheme != "abfs" else set()
        for key, value in values.items():
            if not value:
                continue  # such as the session token of keys that do not expire
            if key == CONNECTION_STRING and key not in others:
                for own, part in _of_connection_string(value).items():
                    self._add(own, key, part)
            elif key not in others:
                self._add(PROVIDER_KEYS[scheme].get(key, key), key, value)
        self._has_others = not others.isdisjoint(values)

    def checked(self) -> dict[str, Any]:
        """The values, with the endpoint that they are for."""
        for own, key in self.names.items():
            if own not in KEYS[self._scheme]:
                raise ValueError(_why_unknown(key, self._scheme))
        if not self._values:
            keys = valid_keys(self._scheme)
            raise ValueError(f"it has no key for {self._scheme}://; valid keys are {keys}")
        for own, needed in NEEDED_KEYS.items():
            if own in self._values and needed not in self._values:
                raise ValueError(f"key {self._name(needed, own)} is missing; {self.names[own]} needs it")
        account = self.names.get("accountName")
        if account in PROVIDER_KEYS[self._scheme] and not self._values.keys() & {"accountKey", "sasToken"}:
            keys = "AZURE_STORAGE_KEY or AZURE_STORAGE_SAS_TOKEN"
            raise ValueError(f"key {keys} is missing; {account} needs one of them")
        if "serviceAccountKey" in self._values:
            _check_google(self._values["serviceAccountKey"], self.names["serviceAccountKey"])
        if self._has_others and self.names.get("endpoint") == "endpoint":
            raise ValueError(
                "key endpoint does not say which provider's keys it is for: write"
                f" {self._provider_name('endpoint') or 'it into a Secret of its own'}"
            )
        return {**self._values, "endpoint": self._values.get("endpoint") or self._own_host()}

    def _add(self, own: str, key: str, value: str) -> None:
        if self._values.get(own, value) != value:
            other = self.names[own]
            raise ValueError(f"keys {other} and {key} mean the same and have different values: remove one")
        self._values[own] = value
        self.names[own] = key

    def _own_host(self) -> str:
        """The provider's own server, if a key says by its name that it is this provider's."""
        is_named = any(own in OF_ONE_PROVIDER or key != own for own, key in self.names.items())
        if is_named and self._scheme == "abfs":
            return self._azure_host()
        if is_named and self._scheme in PROVIDER_HOSTS:
            return PROVIDER_HOSTS[self._scheme]
        given, by_name = join_names(list(self.names.values())), self._provider_name("token")
        missing = f"key endpoint is missing; it names the server that {given} is for"
        has_other_name = "token" in self._values and by_name is not None
        advice = f"; add it, or write {by_name} in place of token" if has_other_name else ""
        raise ValueError(f"{missing}{advice}")

    def _azure_host(self) -> str:
        account = self._values.get("accountName")
        if account is None:
            first = next(iter(self._values))
            raise ValueError(
                f"key {self._name('accountName', first)} is missing; {self.names[first]} needs it, because it"
                " names the server"
            )
        if not AZURE_ACCOUNT.fullmatch(account):
            raise ValueError(
                f"key {self.names['accountName']}: it must have 3 to 24 lower-case letters and digits"
            )
        return f"https://{account}.blob.core.windows.net"

    def _name(self, own: str, present: str) -> str:
        """Name of a key in the style of another one that is present."""
        is_own = self.names[present] == present
        return own if is_own else self._provider_name(own) or own

    def _provider_name(self, own: str) -> str | None:
        return next((key for key, name in PROVIDER_KEYS[self._scheme].items() if name == own), None)


def _why_unknown(key: str, scheme: str) -> str:
    if key in SERVICE_PRINCIPAL:
        return (
            f"key {key} is that of a service principal, which is not supported; use AZURE_STORAGE_ACCOUNT"
            " with AZURE_STORAGE_KEY or AZURE_STORAGE_SAS_TOKEN"
        )
    if any(key in keys for keys in KEYS.values()):
        return f"key {key} is not valid for {scheme}://; valid keys are {valid_keys(scheme)}"
    return f"key {key} is unknown; valid keys are {valid_keys(scheme)}"


def _of_connection_string(text: str) -> dict[str, str]:
    """The values of a connection string, by our names."""
    fields = dict(part.split("=", 1) for part in text.split(";") if "=" in part)
    account, suffix = fields.get("AccountName"), fields.get("EndpointSuffix", "core.windows.net")
    endpoint = fields.get("BlobEndpoint")
    if endpoint is None and account is not None:
        protocol = fields.get("DefaultEndpointsProtocol", "https")
        endpoint = f"{protocol}://{account}.blob.{suffix}"
    secret = fields.get("AccountKey"), fields.get("SharedAccessSignature")
    if endpoint is None or not any(secret):
        raise ValueError(
            f"key {CONNECTION_STRING}: it needs AccountName or BlobEndpoint, and AccountKey or"
            " SharedAccessSignature: copy it again from the access keys of the storage account"
        )
    found = {"endpoint": endpoint, "accountName": account, "accountKey": secret[0], "sasToken": secret[1]}
    return {own: value for own, value in found.items() if value is not None}


def _check_google(text: str, key: str) -> None:
    """Raise ValueError unless the text is the JSON key of a service account."""
    try:
        type_ = json.loads(text)["type"]
    except (ValueError, KeyError, TypeError):
        type_ = None
    if type_ in REFUSED_GOOGLE_TYPES:
        raise ValueError(
            f"key {key} is not the JSON key of a service account: it has type {type_},"
            f" {REFUSED_GOOGLE_TYPES[type_]}; use the key of a service account"
        )
    if type_ != "service_account":
        raise ValueError(f"key {key} is not the JSON key of a service account, with type service_account")


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
    own_names = {name: own for keys in PROVIDER_KEYS.values() for name, own in keys.items()}
    for key, value in values.items():
        own = own_names.get(key, key)
        if own == CONNECTION_STRING:
            SCRUBBER.add(value)
            with suppress(ValueError):
                _redact(_of_connection_string(value))
        elif own == "sasToken":
            SCRUBBER.add(value, *(part for name, part in parse_qsl(value.removeprefix("?")) if name == "sig"))
        elif own == "serviceAccountKey":
            SCRUBBER.add(*_secret_parts(value))
        elif own in NAMES:
            SCRUBBER.add(value if len(value) >= MIN_PUBLIC_LENGTH else None)
        elif own not in PUBLIC:
            SCRUBBER.add(value)


def _secret_parts(key: str) -> Iterator[str]:
    """Yield the secret parts of a service account's key. The other parts are the same in all keys.

    Of a file of another type they are all texts but the type, and of a text that is not JSON the whole.
    """
    try:
        fields = json.loads(key)
    except ValueError:
        yield key
        return
    try:
        yield fields["private_key_id"]
        yield from (line for line in fields["private_key"].splitlines() if "PRIVATE KEY" not in line)
    except (TypeError, KeyError, AttributeError):
        yield from _texts(fields)


def _texts(value: Any) -> Iterator[str]:
    """Yield the texts in JSON types, without those under `type`."""
    if isinstance(value, dict):
        for name, each in value.items():
            yield from () if name == "type" else _texts(each)
    elif isinstance(value, list):
        for each in value:
            yield from _texts(each)
    elif isinstance(value, str):
        yield value
