"""Routes of the queue's page."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import Response

from segfleet.queue.states import TERMINAL, JobState
from segfleet.web.frame import fragment, page, render
from segfleet.web.overview import FRESH_S, PAGE_JOBS, Overview, Wish
from segfleet.web.visitors import OverviewArg

router = APIRouter()

# A page of a thousand machines would be read by nobody; the operator's page lists them all.
MOST_MACHINES = 48
_MOST_KEPT = 200
_Name = Annotated[str, Query(max_length=63)]


def _wish(
    show: Annotated[str, Query(pattern="^(active|ended)$")] = "active",
    text: _Name = "",
    project: _Name = "",
    owner: _Name = "",
    state: _Name = "",
    page: Annotated[int, Query(ge=1, le=100_000)] = 1,
    before: Annotated[int | None, Query(ge=1, lt=2**63)] = None,
) -> Wish:
    return Wish(show, text.strip(), project.strip(), owner.strip(), state, page, before)


WishArg = Annotated[Wish, Depends(_wish)]


class Lists:
    """The queue's list as HTML, made once a second for all who look at the same part of it.

    Args:
        overview: What is shown.
    """

    def __init__(self, overview: Overview) -> None:
        self._overview, self._lock = overview, threading.Lock()
        self._kept: OrderedDict[Wish, tuple[float, str]] = OrderedDict()

    def html(self, wish: Wish) -> str:
        """The list, at most a second old.

        Raises:
            QueueUnavailableError: the database cannot be read.
        """
        with self._lock:
            at, html = self._kept.get(wish, (float("-inf"), ""))
            if time.monotonic() - at >= FRESH_S:
                html = render("queue_list.html", self._values(wish))
                self._kept.pop(wish, None)
                self._kept[wish] = time.monotonic(), html
                if len(self._kept) > _MOST_KEPT:
                    self._kept.popitem(last=False)
            return html

    def _values(self, wish: Wish) -> dict[str, Any]:
        picture = self._overview.look()
        counts = {str(state): number for state, number in picture.counts.items()}
        is_ended = wish.show == "ended"
        if is_ended:
            rows, total = self._overview.ended(picture, wish), sum(counts.get(state, 0) for state in TERMINAL)
        else:
            rows, total = self._overview.rows(picture, wish)
        following = rows[-1]["job"].seq if is_ended and len(rows) == PAGE_JOBS else None
        pages = -(-total // PAGE_JOBS)
        is_filtered = bool(wish.text or wish.project or wish.owner or wish.state)
        shown = {"rows": rows, "total": total, "pages": pages, "following": following, "is_filtered": is_filtered}
        common = {"wish": wish, "use": picture.use, "picture": picture, "counts": counts, "now": picture.at}
        return {**shown, **common, "max_machines": MOST_MACHINES}


@router.get("/")
def queue_page(request: Request, wish: WishArg) -> Response:
    """The queue."""
    states = [str(state) for state in JobState if (state in TERMINAL) == (wish.show == "ended")]
    html = request.app.state.lists.html(wish)
    return page(request, "queue.html", wish=wish, states=states, html=html, query=request.url.query)


@router.get("/live")
def queue_list(request: Request, wish: WishArg, _overview: OverviewArg) -> Response:
    """The queue's list alone, for a page that is open."""
    return fragment(request, request.app.state.lists.html(wish))
