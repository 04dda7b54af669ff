"""How an object store is reached: address, region and credentials, by the usual environment and nowhere else.

s3 takes AWS_ACCESS_KEY_ID and its kin, AWS_REGION, AWS_ENDPOINT_URL, web identity and container roles,
and instance roles; AWS_PROFILE and the shared files are read here. gs takes GOOGLE_APPLICATION_CREDENTIALS
or the user's own login, az takes AZURE_STORAGE_ACCOUNT_NAME and a key, a SAS token or an identity.
"""

from __future__ import annotations

import configparser
import os
import threading
from datetime import timedelta
from typing import Any

SCHEMES = ("s3", "s3a", "gs", "az", "abfs", "abfss")
_PREFIXES = ("AWS_", "GOOGLE_", "AZURE_")  # of variables that say how a store is reached
_OWN_LOGIN = (  # credentials that the library finds by itself
    "AWS_ACCESS_KEY_ID",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_SKIP_SIGNATURE",
)
RETRIES = 8  # of one request, for 5xx, throttling and connections that fail
_RETRY_WITHIN = timedelta(seconds=120)
_FIRST_WAIT = timedelta(milliseconds=100)
_LONGEST_WAIT = timedelta(seconds=10)
_CONNECT_WITHIN = timedelta(seconds=5)
_READ_WITHIN = timedelta(seconds=60)  # from one packet to the next
_REQUEST_WITHIN = timedelta(seconds=600)  # a request has at most 64 MiB
_KEPT = 16

_STORES: dict[tuple[Any, ...], Any] = {}
_MAKING = threading.Lock()


def split(url: str) -> tuple[str, str, str]:
    """(scheme, bucket or container, key) of an address."""
    scheme, _, rest = url.partition("://")
    bucket, _, key = rest.partition("/")
    return scheme, bucket, key.strip("/")


def store(url: str, retries: int = RETRIES) -> Any:
    """The client for a bucket, as the environment is now; made once. Raises ValueError where it names none."""
    scheme, bucket, _ = split(url)
    told = tuple(sorted((k, v) for k, v in os.environ.items() if k.startswith(_PREFIXES)))
    key = (scheme, bucket, retries, told)
    with _MAKING:
        if key not in _STORES:
            if len(_STORES) >= _KEPT:
                _STORES.clear()
            _STORES[key] = _made(url, scheme, bucket, retries)
        return _STORES[key]


def _made(url: str, scheme: str, bucket: str, retries: int) -> Any:
    from obstore.store import AzureStore, GCSStore, S3Store

    if not bucket:
        raise ValueError(
            f"{url}: names no bucket. hint: {scheme}://BUCKET/FOLDER, with two slashes before the bucket"
        )
    common: dict[str, Any] = {
        "retry_config": {
            "max_retries": retries,
            "retry_timeout": _RETRY_WITHIN,
            "backoff": {"init_backoff": _FIRST_WAIT, "max_backoff": _LONGEST_WAIT, "base": 2},
        },
        "client_options": {
            "connect_timeout": _CONNECT_WITHIN,
            "read_timeout": _READ_WITHIN,
            "timeout": _REQUEST_WITHIN,
            "allow_http": _is_plain(),
        },
    }
    try:
        if scheme in ("s3", "s3a"):
            login = shared_login()
            return S3Store(bucket, **login, **common)
        if scheme == "gs":
            return GCSStore(bucket, **common)
        if "@" in bucket:
            return AzureStore.from_url(f"{scheme}://{bucket}", **common)
        return AzureStore(bucket, **common)
    except ValueError:
        raise
    except Exception as fault:  # the library's own, for settings it can't use
        first = str(fault).partition("\n\n")[0]
        raise ValueError(f"{url}: {first}. hint: {hint(scheme)}") from fault


def _is_plain() -> bool:
    """Whether the environment itself names an address without TLS, such as a server on this machine."""
    return any(
        value.startswith("http://")
        for name, value in os.environ.items()
        if name.startswith(_PREFIXES) and "ENDPOINT" in name
    )


def hint(scheme: str) -> str:
    """Which variables have the credentials for this kind of store."""
    return {
        "gs": "set GOOGLE_APPLICATION_CREDENTIALS to a key file, or log in with gcloud",
        "az": "set AZURE_STORAGE_ACCOUNT_NAME, and AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_TOKEN",
    }.get(
        "az" if scheme.startswith(("az", "abfs")) else scheme,
        "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; AWS_ENDPOINT_URL for a store that is not Amazon's",
    )


def shared_login() -> dict[str, Any]:
    """What a profile of the shared AWS files adds to the environment; nothing where that is enough.

    Roles, SSO and ``credential_process`` are boto3's: they work where it is installed. Raises ValueError
    for a profile that there is none of, or that needs boto3.
    """
    if any(os.environ.get(name) for name in _OWN_LOGIN):
        return {}
    asked = os.environ.get("AWS_PROFILE", "")
    profile = asked or "default"
    found = {
        **_section("AWS_CONFIG_FILE", "~/.aws/config", (f"profile {profile}", profile)),
        **_section("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials", (profile,)),
    }
    if not found:
        if asked:
            raise ValueError(
                f"AWS_PROFILE={asked}: no such profile. hint: it is looked for in ~/.aws/config and ~/.aws/credentials"
            )
        return {}
    login: dict[str, Any] = {}
    if "region" in found and not (
        os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    ):
        login["region"] = found["region"]
    if "aws_access_key_id" in found and "role_arn" not in found:
        login["access_key_id"] = found["aws_access_key_id"]
        login["secret_access_key"] = found.get("aws_secret_access_key", "")
        if "aws_session_token" in found:
            login["session_token"] = found["aws_session_token"]
        return login
    if any(name.startswith(("sso_", "role_arn", "credential_process")) for name in found):
        login["credential_provider"] = _boto_login(profile)
    return login


def _boto_login(profile: str) -> Any:
    try:
        from obstore.auth.boto3 import Boto3CredentialProvider

        return Boto3CredentialProvider()
    except ImportError as fault:
        raise ValueError(
            f"the AWS profile {profile!r} logs in by a role, SSO or a process, which takes boto3. hint: pip install boto3"
        ) from fault


def _section(variable: str, usual: str, names: tuple[str, ...]) -> dict[str, str]:
    path = os.path.expanduser(os.environ.get(variable) or usual)
    file = configparser.RawConfigParser()
    try:
        file.read(path)
    except configparser.Error as fault:
        raise ValueError(f"{path}: {fault}. hint: it is read as the AWS tools read it") from fault
    name = next((name for name in names if file.has_section(name)), None)
    return {} if name is None else dict(file.items(name))
