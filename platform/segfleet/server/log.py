"""The service's own log: one JSON object a line on stderr, safe to show in a terminal, without secrets."""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Iterable
from datetime import UTC, datetime

from segfleet import log_context
from segfleet.access.tokens import ANY_TOKEN

_BEARER = re.compile(r"(?i)(bearer\s+)[^\s\"',]+")
_HIDDEN = "[hidden]"


class JsonFormatter(logging.Formatter):
    """Formats a record as one line of ASCII: whatever a name or path holds, it cannot end the line or move a cursor.

    Args:
        secrets: Texts that must never appear.
    """

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        super().__init__()
        self._secrets = tuple(secret for secret in secrets if secret)

    def format(self, record: logging.LogRecord) -> str:
        """One JSON object: time, level, logger, message, what it is about, and for a failure its traceback."""
        entry = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": self._clean(record.getMessage()),
            **{name: self._clean(text) for name, text in log_context.fields().items()},
        }
        if record.exc_info:
            entry["traceback"] = self._clean(self.formatException(record.exc_info))
        return json.dumps(entry, ensure_ascii=True)

    def _clean(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, _HIDDEN)
        return ANY_TOKEN.sub(_HIDDEN, _BEARER.sub(rf"\1{_HIDDEN}", text))


def configure(secrets: Iterable[str]) -> None:
    """Send every logger of this process to stderr as JSON lines."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(secrets))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.captureWarnings(capture=True)
    # MLflow brings a handler of its own, which would write lines that are no JSON.
    logging.getLogger("mlflow").handlers.clear()
    logging.getLogger("mlflow").propagate = True
    # httpx logs each request; the dispatcher makes several a second.
    for chatty in ("httpx", "httpcore", "alembic", "mlflow"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
