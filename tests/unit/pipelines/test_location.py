from __future__ import annotations

from pathlib import Path

import pytest

from segfleet.errors import DataError, SpecError
from segfleet.spec.location import Location, split_location
from segfleet.spec.resolve import resolve_spec
from segfleet_pipelines.location import parse_location, resolve_location

SECRET = "AKIASECRETSECRET"

# Each carries a secret, or leads somewhere else than it seems.
REFUSED = [
    (f"s3://{SECRET}:{SECRET}@bucket/data", "user name or key"),
    (f"https://{SECRET}@host/data", "user name or key"),
    (f"gs://{SECRET}@bucket/data", "user name or key"),
    (f"s3://bucket/data?endpoint_override=evil.example&secret_key={SECRET}", "query"),
    (f"https://host/data?X-Amz-Signature={SECRET}", "query"),
    (f"https://host/data#{SECRET}", "fragment"),
    (f"file:///data?{SECRET}", "query"),
    (f"s3://bucket/../{SECRET}", r"'\.\.'"),
    (f"https://host/a/%2e%2e/{SECRET}", r"'\.\.'"),
    (f"file:///a/../{SECRET}", r"'\.\.'"),
    (f"pipe:curl {SECRET}", "'pipe' is not supported"),
    (f"ftp://{SECRET}@host/x", "'ftp' is not supported"),
    (f"S3A://{SECRET}/x", "'S3A' is not supported"),
    (f"data:{SECRET}", "'data' is not supported"),
    (f"s3:bucket/{SECRET}", "two slashes"),
    ("s3://Bucket_/x", "no bucket's name"),
    ("s3:///x", "no bucket's name"),
    ("s3://bucket:9000/x", "no bucket's name"),
    ("s3://bucket/a//b", "empty parts"),
    ("s3://bucket/./b", "empty parts"),
    ("https:///x", "no host"),
    ("https://host:port/x", "malformed"),
    ("https://host:99999/x", "malformed"),
    ("https://[::1/x", "malformed"),
    ("https://host/a\\b", "backslashes"),
    ("https://host/a b", "blanks"),
    ("https://host\r\nX: y/", "control characters"),
    ("file://host/x", "host"),
    ("file://x", "host"),
    ("file:///a%00b", "NUL"),
    ("s3://bucket/a%00b", "NUL"),
    ("", "empty"),
    ("  ", "empty"),
    ("a\0b", "empty"),
]


@pytest.mark.parametrize(("text", "reason"), REFUSED)
def test_what_is_more_than_a_place_is_refused_and_not_repeated(text: str, reason: str) -> None:
    with pytest.raises(DataError, match=reason) as caught:
        parse_location(text)
    assert SECRET not in str(caught.value)
    with pytest.raises(SpecError, match=r"data\.shards") as refused:
        resolve_spec({"kind": "train", "name": "x", "recipe": "camvid", "data": {"shards": text}})
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("s3://bucket/a/b/", Location("s3", "bucket", "a/b")),
        ("S3://my.bucket-1", Location("s3", "my.bucket-1", "")),
        ("gs://my_bucket/v1", Location("gs", "my_bucket", "v1")),
        ("https://host.example:8443/a%20b/c", Location("https", "host.example:8443", "a%20b/c")),
        ("http://[2001:db8::1]:80/x", Location("http", "[2001:db8::1]:80", "x")),
        ("file:///data/a%20b", Location("file", "", "/data/a b")),
        ("file://localhost/data", Location("file", "", "/data")),
        ("../data", Location("file", "", "../data")),
        ("data?x#y", Location("file", "", "data?x#y")),
    ],
)
def test_locations_are_taken_apart(text: str, expected: Location) -> None:
    assert split_location(text) == expected


def test_the_text_of_a_location_is_a_location_again() -> None:
    for text in ("s3://bucket/a/b", "gs://bucket", "https://host:8443/a%20b", "/data/x"):
        assert str(split_location(text)) == text


def test_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/somebody")
    assert resolve_location("a/b") == tmp_path / "a" / "b"
    assert resolve_location("~/a") == Path("/home/somebody/a")
    assert parse_location(Path("pipe:x")).folder == tmp_path / "pipe:x"
    with pytest.raises(DataError):
        resolve_location("~nobody-of-this-name/x")


@pytest.mark.parametrize("text", ["s3://bucket/x", "gs://bucket/x", "https://host/x"])
def test_what_must_be_local_may_not_be_elsewhere(text: str) -> None:
    with pytest.raises(DataError, match="not on this machine"):
        resolve_location(text)


def test_shards_are_written_to_no_web_server() -> None:
    with pytest.raises(SpecError, match="'https' is not supported here; use a path or file://, s3://, gs://"):
        resolve_spec({"kind": "prepare", "name": "x", "dataset": "synthetic", "out": "https://host/x"})
