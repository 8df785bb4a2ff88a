"""What the commands write: people's tables and lines, or one JSON document."""

from __future__ import annotations

import json
import re
import sys
import time
from typing import Any

from rich.console import Console
from rich.text import Text

# Colours, cursor movements, window titles: whatever a terminal would obey.
_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)?|[ -/]*[0-~])")
# Other control characters, and the marks that turn the direction of writing.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_UNITS = (("d", 86_400), ("h", 3_600), ("m", 60))
_PLAIN_WIDTH = 160


def clean(text: object) -> str:
    """Text from elsewhere without anything that a terminal would take for an order; keeps newlines and tabs."""
    return _CONTROLS.sub("", _ESCAPES.sub("", str(text)))


def clean_line(line: str) -> str:
    """One line of a log: as `clean`, and of what was overwritten by carriage returns only the last."""
    return clean(line.rstrip("\r").rsplit("\r", 1)[-1])


def stdout() -> Console:
    """Console for people; wide when it is no terminal, so that pipes get whole lines."""
    return Console(width=None if sys.stdout.isatty() else _PLAIN_WIDTH, highlight=False)


def stderr() -> Console:
    """Console for progress and errors."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


def say(text: str) -> None:
    """Write one line for people to stdout, whatever it holds."""
    stdout().print(Text(clean(text)), soft_wrap=True)


def note(text: str) -> None:
    """Write one line for people to stderr."""
    stderr().print(Text(clean(text)))


def fail(text: str) -> None:
    """Write an error to stderr."""
    stderr().print(Text("error: ", style="bold red") + Text(clean(text)))


def print_json(document: Any) -> None:
    """Write the one JSON document of a `--json` run; everything outside ASCII is escaped."""
    sys.stdout.write(json.dumps(document, indent=2) + "\n")
    sys.stdout.flush()


def duration(seconds: float | None) -> str:
    """A length of time in at most two units, such as 2h 05m."""
    if seconds is None or seconds != seconds:
        return "-"
    whole = max(0, round(seconds))
    for index, (unit, size) in enumerate(_UNITS):
        if whole >= size:
            smaller, name = (_UNITS[index + 1][1], _UNITS[index + 1][0]) if index + 1 < len(_UNITS) else (1, "s")
            return f"{whole // size}{unit} {whole % size // smaller:02d}{name}"
    return f"{whole}s"


def ago(timestamp: float | None, now: float | None = None) -> str:
    """How long a moment (seconds since the epoch) is past."""
    return "-" if timestamp is None else duration((time.time() if now is None else now) - timestamp)


def number(value: Any, digits: int = 4) -> str:
    """A figure for a table; a dash when there is none."""
    return f"{value:.{digits}g}" if isinstance(value, int | float) and not isinstance(value, bool) else "-"
