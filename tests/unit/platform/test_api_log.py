from __future__ import annotations

import json
import logging
import sys
import warnings

import pytest

from segfleet.server.log import JsonFormatter, configure


def line(message: str, *args: object, secrets: tuple[str, ...] = (), error: BaseException | None = None) -> str:
    info = None if error is None else (type(error), error, error.__traceback__)
    record = logging.LogRecord("segfleet.x", logging.INFO, "f.py", 1, message, args, info)
    return JsonFormatter(secrets).format(record)


def test_no_name_can_end_a_line_or_move_the_cursor() -> None:
    text = line("job %s", "a\r\nb\x1b[2J\u202e\x00\u2028")
    assert text.isascii()
    assert all(32 <= ord(character) < 127 for character in text)
    assert json.loads(text)["message"] == "job a\r\nb\x1b[2J\u202e\x00\u2028"


def test_tokens_are_hidden_everywhere() -> None:
    error = ValueError("token s3cret in Authorization: Bearer abc.def-ghi")
    text = line("header 'bearer xyz123' and s3cret", secrets=("s3cret", ""), error=error)
    assert not any(secret in text for secret in ("s3cret", "abc.def-ghi", "xyz123"))
    assert "ValueError" in json.loads(text)["traceback"]


def test_libraries_write_no_lines_of_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    root, foreign = logging.getLogger(), logging.getLogger("mlflow")
    kept = (list(root.handlers), root.level, list(foreign.handlers), foreign.propagate)
    foreign.addHandler(logging.StreamHandler(sys.stderr))
    try:
        configure(["s3cret"])
        foreign.error("s3cret")
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn("careful", stacklevel=1)
        lines = capsys.readouterr().err.splitlines()
    finally:
        logging.captureWarnings(capture=False)
        root.handlers[:], root.level, foreign.handlers[:], foreign.propagate = kept
    assert [json.loads(line)["message"].split(": ")[-1].split("\n")[0] for line in lines] == ["[hidden]", "careful"]
