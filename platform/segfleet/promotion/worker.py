"""The thread that takes promotions further while nobody asks."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from segfleet.errors import SegfleetError
from segfleet.promotion.desk import Promotions

EVERY_S = 1.0
_JOIN_S = 1.5
_log = logging.getLogger(__name__)


@contextmanager
def promoting(promotions: Promotions, every_s: float = EVERY_S) -> Iterator[None]:
    """Look after all promotions that are under way, those of an earlier process first, as long as the context lasts.

    Args:
        promotions: The service's.
        every_s: Pause between two looks, seconds.
    """
    stop = threading.Event()

    def run() -> None:
        while not stop.is_set():
            try:
                promotions.advance_all()
            except SegfleetError as error:
                _log.warning("promotions: %s", error)
            except Exception:
                _log.exception("promotions: cannot go on; the next look tries again")
            stop.wait(every_s)

    thread = threading.Thread(target=run, name="promotions", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        # A call to MLflow may hang; a move that is cut off goes on after the next start.
        thread.join(_JOIN_S)
