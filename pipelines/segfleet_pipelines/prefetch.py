"""Shards from elsewhere are on this machine before the loader needs them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from queue import SimpleQueue

from segfleet.errors import DataError
from segfleet_pipelines.batch import Batch
from segfleet_pipelines.plan import OrderPlan

# One more window than the one that is read.
_AHEAD = 1

# Numbers of a dataset and of one of its shards.
_Place = tuple[int, int]


class ShardFetcher:
    """Follows the batches and fetches the next window's shards while this window is trained on.

    All ranks of a machine may do so: the cache downloads a shard once, whoever asks.
    """

    def __init__(self, plan: OrderPlan, fetch: Callable[[int, int], None]) -> None:
        """Prepare; the thread begins with the first batch, when the loader's processes have been forked.

        Args:
            plan: Says which shards a step needs.
            fetch: Takes the numbers of a dataset and of one of its shards; may raise DataError.
        """
        self._plan, self._fetch = plan, fetch

    def follow(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Pass the batches on."""
        wanted: SimpleQueue[_Place | None] = SimpleQueue()
        is_over = threading.Event()
        thread = threading.Thread(target=self._run, args=(wanted, is_over), name="shards", daemon=True)
        asked: set[_Place] = set()
        try:
            for batch in batches:
                needed = self._needed(batch.step)
                for place in needed:
                    if place not in asked:
                        wanted.put(place)
                # Only these: when a window comes again, its shards may have been evicted.
                asked = set(needed)
                if thread.ident is None:
                    thread.start()
                yield batch
        finally:
            is_over.set()
            wanted.put(None)

    def _needed(self, step: int) -> list[_Place]:
        shards = enumerate(self._plan.shards(step, step + 1, _AHEAD))
        return [(dataset, shard) for dataset, numbers in shards for shard in numbers]

    def _run(self, wanted: SimpleQueue[_Place | None], is_over: threading.Event) -> None:
        while (place := wanted.get()) is not None and not is_over.is_set():
            try:
                self._fetch(*place)
            except DataError:
                # Whoever reads the shard meets the same error, and ends the training with it.
                continue
