"""How far a row of pictures is, and how long the rest will take: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from segfleet.cli.output import duration

_LINE_EVERY_S = 10.0


@contextmanager
def progress(what: str, total: int, clock: Callable[[], float] = time.monotonic) -> Iterator[Callable[[int], None]]:
    """Show progress on stderr.

    Args:
        what: Is being done.
        total: Number of pictures.
        clock: Seconds.

    Yields:
        To be called with the number of pictures that are through.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _lines(what, total, clock)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.update(task, completed=done)


def _lines(what: str, total: int, clock: Callable[[], float]) -> Callable[[int], None]:
    begin = last = clock()

    def tell(done: int) -> None:
        nonlocal last
        now = clock()
        if done and done < total and now - last >= _LINE_EVERY_S:
            last = now
            left = duration((now - begin) / done * (total - done))
            print(f"{what}: {done} of {total}, {left} left", file=sys.stderr, flush=True)

    return tell
