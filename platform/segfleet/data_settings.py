"""Settings of whatever reads or writes datasets: the shard cache, the object store, the hosts that may be read from."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Self
from urllib.parse import urlsplit

from segfleet.errors import SettingsError
from segfleet.spec.location import split_location

DEFAULT_CACHE_LIMIT = "50GiB"

_UNITS = {"": 1, "B": 1} | {
    f"{prefix}{suffix}": base**power
    for power, prefix in enumerate("KMGT", start=1)
    for suffix, base in (("iB", 1024), ("B", 1000))
}


@dataclass(frozen=True, slots=True)
class S3Settings:
    """How to reach S3 or a store that speaks its language. Keys are never shown.

    Attributes:
        scheme: https, or http for a store in the own network.
        endpoint: host:port of the store; None for Amazon's.
        region: None leaves it to the library.
        access_key: None leaves the search for keys to the library: profile files, the machine's role.
        secret_key: As access_key.
        session_token: Of temporary keys.
    """

    scheme: Literal["http", "https"] = "https"
    endpoint: str | None = None
    region: str | None = None
    access_key: str | None = field(default=None, repr=False)
    secret_key: str | None = field(default=None, repr=False)
    session_token: str | None = field(default=None, repr=False)

    @property
    def secrets(self) -> tuple[str, ...]:
        """What no message may hold."""
        return tuple(filter(None, (self.access_key, self.secret_key, self.session_token)))


@dataclass(frozen=True, slots=True)
class DataSettings:
    """Settings of one process that reads or writes datasets.

    Attributes:
        cache_folder: Where shards from elsewhere are kept.
        cache_limit_bytes: Largest size of all of it.
        data_hosts: host or host:port of private web servers that may be read from, in lower case.
        s3: The object store.
        checkpoints: s3:// or gs:// address below which jobs keep their checkpoints; None: in the jobs' folders.
    """

    cache_folder: Path
    cache_limit_bytes: int
    data_hosts: frozenset[str] = frozenset()
    s3: S3Settings = S3Settings()
    checkpoints: str | None = None

    @classmethod
    def of(cls, env: Mapping[str, str], home: Path) -> Self:
        """Read an environment (see `segfleet.settings.data_settings`).

        Raises:
            SettingsError: the limit, the endpoint or the checkpoints' address is malformed.
        """
        hosts = (host.strip().lower() for host in env.get("SEGFLEET_DATA_HOSTS", "").split(","))
        return cls(
            cache_folder=Path(env.get("SEGFLEET_CACHE_DIR") or home / "cache").expanduser().absolute(),
            cache_limit_bytes=size_bytes("SEGFLEET_CACHE_LIMIT", env.get("SEGFLEET_CACHE_LIMIT", DEFAULT_CACHE_LIMIT)),
            data_hosts=frozenset(filter(None, hosts)),
            s3=_s3(env),
            checkpoints=_checkpoints(env),
        )


def size_bytes(name: str, text: str) -> int:
    """Bytes in a size such as 50GiB, 500MB or 1048576.

    Raises:
        SettingsError: not of that form, or zero; names the variable.
    """
    match = re.fullmatch(r"([0-9]{1,15})(?:\.([0-9]{1,3}))? ?([KMGT]?i?B?)", text.strip())
    size = int(float(f"{match[1]}.{match[2] or 0}") * _UNITS[match[3]]) if match and match[3] in _UNITS else 0
    if size <= 0:
        raise SettingsError(f"{name}={text!r} is not a size; write for instance 50GiB or 500MB")
    return size


def _checkpoints(env: Mapping[str, str]) -> str | None:
    text = env.get("SEGFLEET_CHECKPOINTS", "").strip()
    if not text:
        return None
    try:
        location = split_location(text)
    except ValueError as error:
        raise SettingsError(f"SEGFLEET_CHECKPOINTS is {error}") from None
    if location.scheme not in ("s3", "gs"):
        raise SettingsError(
            f"SEGFLEET_CHECKPOINTS={text!r} is in no object store; write for instance s3://BUCKET/FOLDER"
        )
    return str(location)


def _s3(env: Mapping[str, str]) -> S3Settings:
    endpoint = env.get("AWS_ENDPOINT_URL_S3") or env.get("AWS_ENDPOINT_URL") or None
    access_key, secret_key = env.get("AWS_ACCESS_KEY_ID"), env.get("AWS_SECRET_ACCESS_KEY")
    token = env.get("AWS_SESSION_TOKEN") or None
    keys = (access_key, secret_key, token) if access_key and secret_key else (None, None, None)
    region = env.get("AWS_REGION") or env.get("AWS_DEFAULT_REGION") or None
    if endpoint is None:
        return S3Settings("https", None, region, *keys)
    try:
        parts = urlsplit(endpoint)
        _ = parts.port
    except ValueError:
        parts = urlsplit("")
    scheme: Literal["http", "https"] = "http" if parts.scheme == "http" else "https"
    if parts.scheme != scheme or not parts.hostname or set(endpoint) & set("@?#") or parts.path.strip("/"):
        # Not repeated: it may hold keys.
        raise SettingsError("AWS_ENDPOINT_URL is no address of a store; write for instance https://store.example:9000")
    return S3Settings(scheme, parts.netloc, region or "us-east-1", *keys)
