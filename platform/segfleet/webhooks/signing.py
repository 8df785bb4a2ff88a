"""Signatures by which a receiver knows that an event is ours and fresh, as in the Standard Webhooks specification.

https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md (headers, signed content).
"""

from __future__ import annotations

import base64
import hashlib
import hmac

_PREFIX = "whsec_"


def secret_of(key: str, webhook_id: str) -> bytes:
    """The secret of a webhook: derived, so that no database holds it.

    Args:
        key: Text of the home folder's key file.
        webhook_id: Of the webhook.
    """
    return hmac.digest(key.encode(), f"segfleet webhook {webhook_id}".encode(), hashlib.sha256)


def shown(secret: bytes) -> str:
    """A secret as receivers' libraries expect it."""
    return _PREFIX + base64.b64encode(secret).decode()


def headers(secret: bytes, letter_id: str, at: int, body: bytes) -> dict[str, str]:
    """The headers that prove a body.

    Args:
        secret: Of the webhook.
        letter_id: Of the event.
        at: Time of sending, seconds since the epoch.
        body: As it is sent.
    """
    digest = hmac.digest(secret, f"{letter_id}.{at}.".encode() + body, hashlib.sha256)
    signature = f"v1,{base64.b64encode(digest).decode()}"
    return {"webhook-id": letter_id, "webhook-timestamp": str(at), "webhook-signature": signature}
