"""Forms with a file in them, as browsers post them (RFC 7578)."""

from __future__ import annotations

import email
from email.message import Message

from segfleet.errors import AccessError

# Parameters of headers are taken apart in quadratic time.
_MOST_PARTS, _LONGEST_HEAD, _LONGEST_TYPE = 20, 1024, 200


def split_upload(content_type: str, body: bytes) -> tuple[dict[str, str], bytes]:
    """The fields of a posted form, and the content of its one file; empty: there is none.

    Raises:
        AccessError: the body is no such form.
    """
    fields, file = {}, b""
    for head, content in _parts(content_type, body):
        name = head.get_param("name", header="content-disposition")
        if head.get_content_disposition() != "form-data" or not isinstance(name, str):
            raise _malformed()
        if head.get_filename() is not None:
            file = content
        else:
            fields[name] = content.decode("utf-8", errors="replace")
    return fields, file


def _parts(content_type: str, body: bytes) -> list[tuple[Message, bytes]]:
    if len(content_type) > _LONGEST_TYPE:
        raise _malformed()
    described = Message()
    described["content-type"] = content_type
    boundary = described.get_param("boundary")
    if not isinstance(boundary, str) or not 1 <= len(boundary) <= 70 or not boundary.isascii():
        raise _malformed()
    marker = f"--{boundary}".encode()
    if not body.startswith(marker):
        raise _malformed()
    *parts, end = body[len(marker) :].split(b"\r\n" + marker, _MOST_PARTS)
    if not end.startswith(b"--") or end[2:].strip():
        raise _malformed()
    return [_part(part) for part in parts]


def _part(part: bytes) -> tuple[Message, bytes]:
    end = part.find(b"\r\n\r\n", 0, _LONGEST_HEAD)
    if end < 0 or not part.startswith(b"\r\n"):
        raise _malformed()
    return email.message_from_bytes(part[2 : end + 2]), part[end + 4 :]


def _malformed() -> AccessError:
    return AccessError("this form did not arrive as a browser sends it; load the page and send it again")
