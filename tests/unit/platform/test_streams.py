"""Streams: nothing of the history is missed or told twice, a job's life and log end when they end, limits hold."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from factories import migrated_database, prepare_document
from segfleet.errors import QueueUnavailableError, TooManyStreamsError
from segfleet.queue import lifecycle
from segfleet.queue.service import Queue
from segfleet.queue.store import Store
from segfleet.server import feed as feed_module
from segfleet.server import sources
from segfleet.server.feed import SETTLE_S, Feed, Horizon
from segfleet.server.streams import EventStream, Message, Pause, Places

PERIOD_S = 0.005


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[Queue]:
    store = Store(migrated_database(tmp_path / "segfleet.db"))
    seconds = itertools.count(1_700_000_000)
    yield Queue(store, lambda: float(next(seconds)), tmp_path / "storage")
    store.close()


@pytest.fixture
def feed(queue: Queue) -> Iterator[Feed]:
    feed = Feed(queue, PERIOD_S)
    yield feed
    feed.close()


def submit(queue: Queue, **changes: Any) -> str:
    return queue.submit(prepare_document() | changes, owner="ann")[0].id


def collect(source: AsyncIterator[Message | Pause], most: int, then: dict[int, Callable[[], object]]) -> list[Message]:
    """The first messages; `then[n]` is done once there are n of them."""

    async def take() -> list[Message]:
        found: list[Message] = []
        async with asyncio.timeout(20):
            async for message in source:
                if isinstance(message, Message):
                    found.append(message)
                if (act := then.pop(len(found), None)) is not None:
                    await asyncio.to_thread(act)
                if len(found) >= most:
                    break
        await source.aclose()  # type: ignore[attr-defined]
        return found

    return asyncio.run(take())


def test_lines_are_handed_out_in_order_and_a_gap_is_waited_for() -> None:
    horizon = Horizon(3)
    assert horizon.advance([4, 5, 7, 8], 100.0) == 5, "6 may still come"
    assert horizon.advance([6, 7, 8], 100.0 + SETTLE_S - 1) == 8, "it came"
    assert horizon.advance([10, 11], 200.0) == 8
    assert horizon.advance([10, 11, 13], 200.0 + SETTLE_S - 1) == 8
    assert horizon.advance([10, 11, 13], 200.0 + SETTLE_S) == 11, "9 can come no more, 12 can"
    assert horizon.advance([13], 200.0 + SETTLE_S) == 11
    assert horizon.advance([13], 200.0 + 2 * SETTLE_S) == 13
    assert horizon.advance([], 300.0) == 13


def test_the_feed_reads_on_from_where_it_was_and_keeps_the_newest(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed_module, "_KEPT_LINES", 3)
    feed = Feed(queue)
    first = [submit(queue) for _ in range(5)]
    feed.look()
    assert feed.head == 5
    assert [line.event.job_id for line in feed.since(2) or ()] == first[2:]
    assert feed.since(5) == ()
    assert feed.since(9) == ()
    assert feed.since(0) is None, "further back than what is kept"
    assert [line.event.job_id for line in feed.read_since(0)] == first
    later = submit(queue, name="later")
    assert [line.event.job_id for line in feed.read_since(4)] == first[4:], "not beyond the horizon"
    feed.look()
    (line,) = feed.since(5) or ()
    assert (line.event.job_id, line.event.kind, line.name, line.owner) == (later, "submitted", "later", "ann")


def test_a_history_goes_on_behind_a_line_and_has_only_what_is_wanted(queue: Queue, feed: Feed) -> None:
    jobs = [submit(queue, name=name) for name in ("a", "b", "c")]
    interest = sources.Interest(job=jobs[1])
    found = collect(sources.history(feed, interest, 0), 2, {1: lambda: [queue.cancel(job, "bob") for job in jobs]})
    assert [(one.event, one.id, one.data["kind"], one.data["who"]) for one in found] == [
        ("history", 2, "submitted", "ann"),
        ("history", 5, "cancelled", "bob"),
    ]
    assert found[1].data["name"] == "b"
    again = collect(sources.history(feed, sources.Interest(), 2), 4, {})
    assert [one.id for one in again] == [3, 4, 5, 6]
    by_state = sources.Interest(state="cancelled", project="default", owner="ann", kind="prepare")
    assert [one.id for one in collect(sources.history(feed, by_state, 0), 3, {})] == [4, 5, 6]


def test_a_history_without_a_beginning_has_only_what_comes(queue: Queue, feed: Feed) -> None:
    submit(queue)
    made: list[str] = []
    found = collect(sources.history(feed, sources.Interest(), None), 1, {0: lambda: made.append(submit(queue))})
    assert [one.data["job"] for one in found] == made


def test_a_history_longer_than_what_is_kept_comes_from_the_database(
    queue: Queue, feed: Feed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed_module, "_KEPT_LINES", 3)
    monkeypatch.setattr(feed_module, "_MOST_LINES", 4)
    for _ in range(11):
        submit(queue)
    found = collect(sources.history(feed, sources.Interest(), 0), 11, {})
    assert [one.id for one in found] == list(range(1, 12))


def test_a_jobs_life_is_told_to_its_end(queue: Queue, feed: Feed) -> None:
    job_id = submit(queue)
    other = submit(queue)

    def run() -> None:
        with queue.store.write() as tx:
            lifecycle.begin_attempt(tx, tx.job(job_id), 1, "0" * 64, queue.clock())

    acts = {2: lambda: queue.set_priority(job_id, "bob", 70), 4: lambda: (queue.cancel(other, "bob"), run())}
    found = collect(sources.life(feed, queue, job_id, 0), 6, acts)
    assert [(one.event, one.id) for one in found] == [
        ("history", 1),
        ("job", None),
        ("history", 3),
        ("job", None),
        ("history", 5),
        ("job", None),
    ]
    assert [one.data["priority"] for one in found if one.event == "job"] == [50, 70, 70]
    assert found[5].data["state"] == "starting"
    queue.cancel(other, "bob")
    ended = collect(sources.life(feed, queue, other, 0), 9, {})
    assert [one.event for one in ended] == ["history", "history", "job", "end"]
    assert ended[-1].data == {"state": "cancelled"}
    assert [one.event for one in collect(sources.life(feed, queue, other, 4), 9, {})] == ["job", "end"]


def test_a_log_is_told_piece_by_piece_and_ends_with_its_job(queue: Queue, feed: Feed, tmp_path: Path) -> None:
    job_id = submit(queue)
    with queue.store.write() as tx:
        attempt = lifecycle.begin_attempt(tx, tx.job(job_id), 1, "0" * 64, queue.clock())
    log = tmp_path / f"{attempt.id}.log"
    euro = "€\r\n\0".encode()
    log.write_bytes(b"one " + euro[:2])

    def more() -> None:
        log.write_bytes(b"one " + euro + b"\xff")

    def end() -> None:
        with queue.store.write() as tx:
            tx.change_attempt(attempt.id, {"closed": True})
            job = tx.job(job_id)
            tx.change_job(job, {"state": "cancelled"})

    found = collect(sources.log(feed, queue, tmp_path, job_id, 0), 3, {1: more, 2: end})
    title = f"===== {attempt.id} =====\n"
    assert [one.event for one in found] == ["log", "log", "end"]
    assert [one.data["text"] for one in found] == [f"{title}one ", "€\r\n\0\N{REPLACEMENT CHARACTER}", ""]
    assert found[0].id == len(title) + 4, "half a character is not told, and not passed over"
    (rest, _) = collect(sources.log(feed, queue, tmp_path, job_id, found[0].id), 9, {})
    assert rest.data["text"] == found[1].data["text"]


def test_a_stream_outlives_a_database_that_is_away(
    queue: Queue, feed: Feed, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sources, "_BREATH_S", 0.01)
    monkeypatch.setattr(sources, "_LOG_EVERY_S", 0.01)
    job_id = submit(queue)
    queue.cancel(job_id, "bob")
    read, fails = queue.store.read, itertools.chain([True] * 5, itertools.repeat(False))

    def sometimes() -> Any:
        if next(fails):
            raise QueueUnavailableError("away")
        return read()

    monkeypatch.setattr(queue.store, "read", sometimes)
    assert collect(sources.life(feed, queue, job_id, 0), 9, {})[-1].event == "end"
    fails = itertools.chain([True] * 5, itertools.repeat(False))
    assert collect(sources.log(feed, queue, tmp_path, job_id, 0), 9, {})[-1].event == "end"
    fails = itertools.chain([True] * 5, itertools.repeat(False))
    assert len(collect(sources.history(feed, sources.Interest(), 0), 2, {})) == 2


def test_closing_the_feed_ends_all_streams(queue: Queue, feed: Feed) -> None:
    job_id = submit(queue)
    began = time.monotonic()
    assert len(collect(sources.life(feed, queue, job_id, 0), 9, {2: feed.close})) == 2
    assert collect(sources.history(feed, sources.Interest(), None), 9, {}) == []
    assert time.monotonic() - began < 9, "woken, not waited out"


def test_a_message_is_lines_of_ascii_whatever_is_in_it() -> None:
    text = "a\nb\r\u2028c\0\ud800 data: x\n\nevent: y"
    sent = Message("log", {"text": text}, 7).encode()
    assert sent.startswith(b"id: 7\nevent: log\ndata: {")
    assert sent.endswith(b"}\n\n")
    assert sent.count(b"\n") == 4
    assert b"\r" not in sent
    assert json.loads(sent.splitlines()[2].removeprefix(b"data: ")) == {"text": text}
    assert Message("job", {}).encode() == b"event: job\ndata: {}\n\n"
    assert Pause(3).encode() == b":\nid: 3\n\n"


def test_places_are_limited_and_given_back() -> None:
    places = Places(per_token=2, most=3)
    for token in ("a", "a", "b"):
        places.take(token)
    with pytest.raises(TooManyStreamsError, match="this token has 2 streams open"):
        places.take("a")
    with pytest.raises(TooManyStreamsError, match="this server has 3"):
        places.take("c")
    places.give_back("a")
    places.take("c")


def test_a_stream_ends_when_the_token_does_and_gives_its_place_back() -> None:
    given_back: list[int] = []
    allowed = iter([True, False])

    async def source() -> AsyncIterator[Message | Pause]:
        for number in range(9):
            yield Message("job", {"n": number})

    async def is_allowed() -> bool:
        return next(allowed)

    sent: list[Any] = []

    async def run() -> None:
        async def receive() -> Any:
            await asyncio.sleep(60)

        async def send(message: Any) -> None:
            sent.append(message)

        stream = EventStream(source(), is_allowed, lambda: given_back.append(1))
        await stream({"type": "http", "asgi": {"spec_version": "2.3"}}, receive, send)

    asyncio.run(run())
    body = b"".join(message.get("body", b"") for message in sent)
    assert body.startswith(b":\n\n")
    assert body.count(b"event: job") == 1
    assert body.endswith(b'event: refused\ndata: {"reason": "the token is not valid any more"}\n\n')
    assert given_back == [1]
