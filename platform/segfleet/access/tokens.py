"""Tokens of users: how they are made, told apart and compared.

A token is `segfleet_user_ID_SECRET`. The prefix lets scanners of repositories and logs find one that got lost. The id
is public and names the token's row, so that no secret is ever looked for in a table, where the time of the search would
tell how much of it was right. Only the SHA-256 of the whole token is stored: 256 random bits need no slow digest.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets

HOME_PREFIX = "segfleet_home_"
HOME_TOKEN_ID = "home"  # noqa: S105 - a public name, no secret
# What a log may never show; also of a token that was cut off.
ANY_TOKEN = re.compile(r"segfleet_(user|home)_[0-9A-Za-z_-]+")
_USER_PREFIX = "segfleet_user_"
_USER_TOKEN = re.compile(r"segfleet_user_([0-9a-f]{12})_[0-9a-f]{64}")


def new_token() -> tuple[str, str]:
    """A token's public id and its text, of which 256 bits are random and secret."""
    token_id = secrets.token_hex(6)
    return token_id, f"{_USER_PREFIX}{token_id}_{secrets.token_hex(32)}"


def id_of(token: str) -> str | None:
    """The public id in a user's token; None if it is none."""
    match = _USER_TOKEN.fullmatch(token)
    return match[1] if match else None


def digest(token: str) -> str:
    """What is stored of a token: its SHA-256, in hex."""
    return hashlib.sha256(token.encode(errors="surrogateescape")).hexdigest()


def same_secret(given: str, expected: str) -> bool:
    """Compare without telling by the time it takes how much was right; nothing given is never right."""
    return is_digest_of(given, digest(expected))


def is_digest_of(given: str, expected: str) -> bool:
    """Whether `expected` is the digest of what was given, without telling by the time it takes how much is."""
    return hmac.compare_digest(digest(given), expected) and bool(given)


def same_digest(given: str, expected: str) -> bool:
    """Compare two digests without telling by the time it takes how much was right."""
    return hmac.compare_digest(given, expected)
