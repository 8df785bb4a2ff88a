"""Entity tags of jobs (RFC 9110, section 13): answer nothing new with 304, change nothing that has changed.

A job's tag is its version and a digest of the answer, since the answer also tells what the scheduler thinks of its
waiting. Which answer a caller has seen matters to `If-None-Match`; to `If-Match`, only which version of the job.
"""

from __future__ import annotations

import hashlib
import re
from typing import Annotated

from fastapi import Depends, Header, Response
from pydantic import BaseModel

_TAG = re.compile(r'\s*(W/)?"([\x21\x23-\x7e\x80-\xff]*)"\s*(?:,|$)')
_OURS = re.compile(r"([0-9]{1,18})-[0-9a-f]{16}")
_HEADER_CHARS = 2000


def tagged(answer: BaseModel, version: int, known: str | None) -> Response:
    """An answer with its tag; 304 without a body if the caller has it already.

    Args:
        answer: What is shown.
        version: Of the job.
        known: The header If-None-Match.
    """
    body = answer.model_dump_json().encode()
    tag = f"{version}-{hashlib.sha256(body).hexdigest()[:16]}"
    headers = {"ETag": f'"{tag}"'}
    if known is not None and (known.strip() == "*" or any(tag == given for _, given in _tags(known))):
        return Response(status_code=304, headers=headers)
    return Response(body, headers=headers, media_type="application/json")


def versions_in(header: str | None) -> frozenset[int] | None:
    """The versions that a header If-Match allows; None: any. What is no tag of ours allows none."""
    if header is None or header.strip() == "*":
        return None
    # A weak tag never matches here.
    ours = (_OURS.fullmatch(tag) for is_weak, tag in _tags(header) if not is_weak)
    return frozenset(int(match[1]) for match in ours if match)


def _tags(header: str) -> list[tuple[bool, str]]:
    """(whether it is weak, the tag) of each in a list; nothing behind what is malformed."""
    found, at = [], 0
    while match := _TAG.match(header, at):
        found.append((bool(match[1]), match[2]))
        at = match.end()
    return found


def _versions(
    if_match: Annotated[
        str | None,
        Header(max_length=_HEADER_CHARS, description="ETag of the job as you know it; 412 if it has changed"),
    ] = None,
) -> frozenset[int] | None:
    return versions_in(if_match)


IfMatch = Annotated[frozenset[int] | None, Depends(_versions)]
IfNoneMatch = Annotated[
    str | None, Header(max_length=_HEADER_CHARS, description="ETag of the answer that you have; 304 if it is the same")
]
