"""Read a JSON file that is larger than memory should hold: one item of its lists at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from segfleet.errors import DataError

_CHUNK = 1 << 20
_SPACE = " \t\n\r"
_ENDS = (*_SPACE, ",", "]", "}")


def stream_items(path: Path) -> Iterator[tuple[str, Any]]:
    """Items of the lists that a JSON object holds, with the names of their lists, in file order.

    Values that are no lists are passed over. Memory is that of the largest item.

    Raises:
        DataError: missing, or not a JSON object.
    """
    try:
        with path.open(encoding="utf-8") as file:
            yield from _Reader(file).items()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    except (ValueError, RecursionError) as error:  # json's own error, or a number of thousands of digits
        raise DataError(f"{path} is not whole JSON ({error}); fetch it again") from error


class _Reader:
    """A window on the text that moves forward."""

    def __init__(self, file: TextIO) -> None:
        self._file, self._text, self._at = file, "", 0
        self._decoder = json.JSONDecoder()

    def items(self) -> Iterator[tuple[str, Any]]:
        self._take("{")
        while self._peek() != "}":
            name = self._value()
            self._take(":")
            if self._peek() == "[":
                self._take("[")
                while self._peek() != "]":
                    yield name, self._value()
                    self._separator("]")
                self._take("]")
            else:
                self._value()
            self._separator("}")

    def _value(self) -> Any:
        self._peek()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
            except json.JSONDecodeError:
                if not self._more():
                    raise
                continue
            # A number that the end of the window cuts, as in 12|3, 12.|5 or 1e|5, decodes as another one.
            if not isinstance(value, int | float) or self._text[end : end + 1] in _ENDS or not self._more():
                self._at = end
                return value

    def _separator(self, end: str) -> None:
        if self._peek() != end:
            self._take(",")

    def _take(self, sign: str) -> None:
        if self._peek() != sign:
            raise json.JSONDecodeError(f"{sign!r} is missing", self._text, self._at)
        self._at += 1

    def _peek(self) -> str:
        """The next character that is not space; empty at the end."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in _SPACE:
                self._at += 1
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                return ""

    def _more(self) -> bool:
        """Read on, twice as far each time that one item needs it; what is behind is dropped."""
        left = self._text[self._at :]
        added = self._file.read(max(_CHUNK, len(left)))
        self._text, self._at = left + added, 0
        return bool(added)
