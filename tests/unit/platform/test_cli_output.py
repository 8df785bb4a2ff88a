from __future__ import annotations

import json

import pytest

from segfleet.cli.output import ago, clean, clean_line, duration, number, print_json


@pytest.mark.parametrize(
    ("dirty", "expected"),
    [
        ("plain, mit Umlaut ü", "plain, mit Umlaut ü"),
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07text", "text"),
        ("\x1b]8;;http://evil\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x1bPq payload\x1b\\after", "after"),
        ("a\x00b\x08c\x7fd\x9be", "abcde"),
        ("file\u202egpj.exe", "filegpj.exe"),
        ("tab\tand\nline stay", "tab\tand\nline stay"),
        ("cut off \x1b[3", "cut off 3"),
    ],
)
def test_nothing_a_terminal_would_obey_is_left(dirty: str, expected: str) -> None:
    assert clean(dirty) == expected
    assert "\x1b" not in clean(dirty)


@pytest.mark.parametrize(
    ("line", "expected"), [("10%\r50%\r100%", "100%"), ("windows\r", "windows"), ("real\rfake", "fake"), ("", "")]
)
def test_a_log_line_shows_only_what_was_written_last(line: str, expected: str) -> None:
    assert clean_line(line) == expected


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"),
        (float("nan"), "-"),
        (0, "0s"),
        (59.6, "1m 00s"),
        (61, "1m 01s"),
        (7_500, "2h 05m"),
        (90_000, "1d 01h"),
    ],
)
def test_durations_have_at_most_two_units(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


def test_a_moment_is_shown_by_its_distance() -> None:
    assert ago(100.0, now=161.0) == "1m 01s"
    assert ago(None) == "-"


@pytest.mark.parametrize(("value", "text"), [(0.51234567, "0.5123"), (None, "-"), ("x", "-"), (True, "-"), (3, "3")])
def test_figures_have_four_digits_and_gaps_a_dash(value: object, text: str) -> None:
    assert number(value) == text


def test_json_output_is_one_document_without_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"name": "\x1b[31m\u202e"})
    out = capsys.readouterr().out
    assert json.loads(out) == {"name": "\x1b[31m\u202e"}
    assert out.isascii()
    assert "\x1b" not in out
