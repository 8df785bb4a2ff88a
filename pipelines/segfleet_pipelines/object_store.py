"""Files of S3 and Google Cloud Storage, through pyarrow.fs."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pyarrow as pa
import pyarrow.fs as pafs

from segfleet.data_settings import S3Settings
from segfleet.errors import DataError, FileMissingError, SettingsError
from segfleet.public_hosts import is_public
from segfleet.spec.location import Location
from segfleet_pipelines.remote import Stream
from segfleet_pipelines.retrying import TransientError

_CHUNK_BYTES = 8 * 1024 * 1024
_CONNECT_S = 10.0
_STALLED_S = 30.0
_LONGEST_REASON = 300

# Time does not mend these; a file that is not there has an exception of its own.
_LASTING = re.compile(
    r"ACCESS_DENIED|NO_SUCH_BUCKET|INVALID_ACCESS_KEY_ID|SIGNATURE_DOES_NOT_MATCH|UNRECOGNIZED_CLIENT|EXPIRED_TOKEN|"
    r"INVALID_CLIENT_TOKEN_ID|MISSING_AUTHENTICATION_TOKEN|HTTP status 4(?!08|25|29)\d\d|"
    r"PERMISSION_DENIED|UNAUTHENTICATED|INVALID_ARGUMENT"
)


class ObjectFiles:
    """The objects of a bucket below a prefix; one try of each operation."""

    def __init__(self, location: Location, s3: S3Settings, store: Any = None) -> None:
        """Prepare; nothing is asked yet.

        Args:
            location: s3:// or gs://.
            s3: Endpoint and keys.
            store: A pyarrow file system, instead of the one of the location.
        """
        self._address, self._secrets = str(location), s3.secrets
        self._prefix = f"{location.host}/{unquote(location.path)}".rstrip("/")
        self._scheme, self._s3 = location.scheme, s3
        self._store, self._process = store, None if store is None else os.getpid()

    def size(self, name: str) -> int:
        """See `segfleet_pipelines.remote.Files`."""
        with self._translating(name):
            info = self._opened().get_file_info(self._path(name))
        if info.type != pafs.FileType.File:
            raise FileMissingError(name, self._address)
        return int(info.size)

    @contextmanager
    def stream(self, name: str, start: int, version: str | None) -> Iterator[Stream]:
        """See `segfleet_pipelines.remote.Files`."""
        with self._translating(name):
            file = self._opened().open_input_file(self._path(name))
            size, found = int(file.size()), _version(file)
        with file:
            begin = start if version is not None and found == version else 0
            yield Stream(begin, size, found, self._chunks(name, file, begin, size))

    def upload(self, source: Path, name: str) -> None:
        """See `segfleet_pipelines.remote.Files`."""
        with self._translating(name):
            out = self._opened().open_output_stream(self._path(name))
        size = 0
        try:
            for chunk in _chunks_of(source):
                with self._translating(name):
                    out.write(chunk)
                size += len(chunk)
        except BaseException:
            # Closing is the only way to end an upload, and it may complete one that is cut short.
            with suppress(OSError, pa.ArrowException):
                out.close()
            with suppress(OSError, pa.ArrowException):
                self._opened().delete_file(self._path(name))
            raise
        with self._translating(name):
            out.close()
        if (stored := self.size(name)) != size:
            raise TransientError(f"{stored} of {size} bytes have arrived")

    def names(self) -> list[str]:
        """See `segfleet_pipelines.remote.Files`."""
        with self._translating(""):
            found = self._opened().get_file_info(pafs.FileSelector(self._prefix, allow_not_found=True))
        return sorted(str(info.base_name) for info in found if info.type == pafs.FileType.File)

    def names_below(self) -> list[str]:
        """Names of the files at any depth, relative to the prefix, sorted; empty if there are none."""
        with self._translating(""):
            selector = pafs.FileSelector(self._prefix, allow_not_found=True, recursive=True)
            found = self._opened().get_file_info(selector)
        start = len(self._prefix) + 1
        return sorted(str(info.path)[start:] for info in found if info.type == pafs.FileType.File)

    def delete(self, name: str) -> None:
        """Delete a file, if it is there."""
        with self._translating(name), suppress(FileNotFoundError):
            self._opened().delete_file(self._path(name))

    def _path(self, name: str) -> str:
        return f"{self._prefix}/{name}"

    def _chunks(self, name: str, file: Any, start: int, size: int) -> Iterator[bytes]:
        for offset in range(start, size, _CHUNK_BYTES):
            with self._translating(name):
                chunk = file.read_at(min(_CHUNK_BYTES, size - offset), offset)
            yield chunk

    def _opened(self) -> Any:
        # A forked process does not use its parent's: a lock in it may have been held in the moment of the fork.
        if self._process != os.getpid():
            self._store, self._process = _gcs() if self._scheme == "gs" else _s3(self._s3), os.getpid()
        return self._store

    @contextmanager
    def _translating(self, name: str) -> Iterator[None]:
        """pyarrow's errors become ours: gone, lasting or passing."""
        try:
            yield
        except FileNotFoundError as error:
            raise FileMissingError(name, self._address) from error
        except (OSError, pa.ArrowException) as error:
            reason = self._without_secrets(str(error))
            if not isinstance(error, OSError) or isinstance(error, PermissionError) or _LASTING.search(reason):
                file = f"{name!r} of {self._address}" if name else self._address
                raise DataError(
                    f"{file}: the store refuses: {reason}; check the address, "
                    "the keys in the environment and their rights"
                ) from None
            raise TransientError(reason) from None

    def _without_secrets(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return " ".join(text.split())[:_LONGEST_REASON]


def _chunks_of(source: Path) -> Iterator[bytes]:
    try:
        with source.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                yield chunk
    except OSError as error:
        raise DataError(f"{source} cannot be read: {error.strerror}") from error


def _version(file: Any) -> str:
    """Entity tag and size of an open object."""
    metadata = file.metadata() or {}
    return f"{metadata.get(b'ETag', b'').decode()}-{file.size()}"


def _s3(settings: S3Settings) -> Any:
    if settings.scheme == "http":
        _require_private(str(settings.endpoint))
    return pafs.S3FileSystem(
        access_key=settings.access_key,
        secret_key=settings.secret_key,
        session_token=settings.session_token,
        region=settings.region,
        scheme=settings.scheme,
        endpoint_override=settings.endpoint,
        connect_timeout=_CONNECT_S,
        request_timeout=_STALLED_S,
        # Retrying is done by whoever uses this, in one place.
        retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=1),
    )


def _gcs() -> Any:
    return pafs.GcsFileSystem(retry_time_limit=timedelta(seconds=_STALLED_S))


def _require_private(endpoint: str) -> None:
    """Data and signatures go in the clear only where nobody else listens."""
    host = urlsplit(f"//{endpoint}").hostname or ""
    try:
        addresses = {str(entry[4][0]) for entry in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    except OSError as error:
        raise TransientError(f"the host {host!r} of AWS_ENDPOINT_URL is not known ({error})") from error
    if any(is_public(address) for address in addresses):
        raise SettingsError(f"AWS_ENDPOINT_URL is plain http to the public host {host!r}; use https there")
