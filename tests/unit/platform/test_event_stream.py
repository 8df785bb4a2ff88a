"""Reading streams: nothing is missed or told twice over breaks, and a service that stays away is given up."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import pytest

from segfleet.connection import Connection, UnreachableError
from segfleet.errors import ServiceError, TooManyStreamsError, UnknownJobError
from segfleet.event_stream import StreamEvent, follow, parse

END = ["event: end", "data: {}", ""]


class Scripted:
    """A connection whose answers are written down: lines, and errors between them; then nobody answers."""

    def __init__(self, *answers: Sequence[str | Exception]) -> None:
        self.answers, self.asked, self.now = list(answers), list[tuple[int | None, float]](), 0.0
        self._lines: Sequence[str | Exception] = ()

    @contextmanager
    def stream(self, path: str, params: dict[str, Any], silence_s: float) -> Iterator[Scripted]:
        assert (path, params["kind"]) == ("/events", "train")
        self.asked.append((params["after"], silence_s))
        self._lines = self.answers.pop(0) if self.answers else [UnreachableError("nobody")]
        yield self

    def iter_lines(self) -> Iterator[str]:
        for line in self._lines:
            if isinstance(line, Exception):
                raise line
            yield line

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def follow(self, after: int | None = 0, until: float | None = None) -> Iterator[StreamEvent]:
        return follow(
            cast(Connection, self),
            "/events",
            after=after,
            patience_s=10.0,
            params={"kind": "train"},
            until=until,
            sleep=self.sleep,
            clock=lambda: self.now,
        )


def line(number: int) -> list[str]:
    return [f"id: {number}", "event: history", f'data: {{"seq": {number}}}', ""]


def test_it_goes_on_behind_the_last_message_after_a_break() -> None:
    cut = UnreachableError("cut")
    script = Scripted(
        [":", "", *line(3), *line(5), "id: 6", "event: history", cut],
        [cut],
        [*line(6), ":", "id: 9", ""],  # it ended in order: the service was stopped
        [*line(11), *END, *line(12)],
    )
    assert [message.data.get("seq") for message in script.follow()] == [3, 5, 6, 11, None]
    assert [after for after, _ in script.asked] == [0, 5, 5, 9]


def test_a_service_that_stays_away_is_given_up_and_one_that_speaks_is_not() -> None:
    script = Scripted(*([*line(number)[0:1], "", UnreachableError("cut")] for number in range(1, 30)))
    with pytest.raises(UnreachableError, match="nobody"):
        list(script.follow(None))
    assert script.asked[0][0] is None
    assert script.asked[29][0] == 29
    assert 10 <= script.now - 29 * 0.1 <= 14


@pytest.mark.parametrize("error", [UnknownJobError("job-aaaaaaaa"), ServiceError("odd")])
def test_a_refusal_is_told_at_once(error: Exception) -> None:
    script = Scripted([error], END)
    with pytest.raises(type(error)):
        list(script.follow())
    assert script.now == 0.0


def test_a_place_is_waited_for() -> None:
    script = Scripted([TooManyStreamsError("this token", "100")], END)
    assert [message.event for message in script.follow()] == ["end"]


def test_it_ends_in_time_without_an_error() -> None:
    script = Scripted()
    assert list(script.follow(until=5.0)) == []
    assert script.now >= 5.0
    assert all(silence_s <= 5.0 for _, silence_s in script.asked)
    assert script.asked[-1][1] < 2.0


def test_messages_of_a_stream() -> None:
    lines = [":", "", "id: 7", "", "event: log", 'data: {"text": "a\\nb: c"}', "", "event: cut"]
    assert list(parse(iter(lines))) == [
        StreamEvent("", {}, None),
        StreamEvent("", {}, 7),
        StreamEvent("log", {"text": "a\nb: c"}, None),
    ]
    for data in ("{", "[1]", "nothing"):
        with pytest.raises(ServiceError):
            list(parse(iter([f"data: {data}", ""])))
