from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clusters import clusters, gangs, held, holdings
from segfleet.queue.scheduling.pool import Layout, Pool, vacated
from segfleet.queue.scheduling.values import Gang, Holding, Node

MIXED = Pool((Node(8, 4), Node(4, 0), Node(8, 2)))


@pytest.mark.parametrize(
    ("gang", "room"),
    [
        (Gang(1, 1, 0, 99), 20),
        (Gang(1, 1, 1, 99), 6),
        (Gang(1, 4, 1, 99), 4),
        (Gang(1, 4, 0, 99), 5),
        (Gang(1, 9, 0, 99), 0),
        (Gang(1, 1, 3, 99), 1),
        (Gang(1, 0, 1, 99), 6),
        (Gang(2, 0, 0, 3), 3),
        (Gang(2, 1, 1), 2),
    ],
)
def test_room_is_counted_node_by_node_and_at_most_the_gangs_most(gang: Gang, room: int) -> None:
    assert MIXED.room(gang) == room


@pytest.mark.parametrize(
    ("gang", "places"),
    [
        (Gang(1, 1, 0), ((1, 1),)),  # keeps nodes with GPUs free for those that need them
        (Gang(2, 1, 1), ((2, 2),)),  # the fullest node that takes all
        (Gang(3, 1, 1), ((0, 3),)),
        (Gang(5, 1, 1), ((0, 4), (2, 1))),
        (Gang(7, 1, 1), None),
        (Gang(4, 4, 1), ((2, 2), (0, 2))),
    ],
)
def test_a_gang_stands_on_the_fewest_nodes(gang: Gang, places: tuple[tuple[int, int], ...] | None) -> None:
    assert MIXED.place(gang, gang.workers) == places


def test_what_is_taken_comes_back() -> None:
    gang = Gang(5, 1, 1)
    places = MIXED.place(gang, 5)
    assert places is not None
    left = MIXED.minus(gang, places)
    assert left.nodes == (Node(4, 0), Node(4, 0), Node(7, 1))
    assert left.plus(gang, places) == MIXED
    assert MIXED.without(gang, 5) == left
    assert MIXED.without(gang, 7) is None


def test_the_largest_workers_are_laid_first_so_that_the_rest_stays_whole() -> None:
    layout = Layout.of((Node(4, 4), Node(4, 4)), [held(1, cpus=1, gpus=1), held(2, cpus=4, gpus=4)])
    assert layout.pool.nodes == (Node(0, 0), Node(3, 3))
    layout = Layout.of((Node(2, 0), Node(4, 4)), [held(1, cpus=2, gpus=0), held(2, workers=4)])
    assert layout.pool.nodes == (Node(0, 0), Node(0, 0))


def test_holders_of_more_than_there_is_leave_nothing_to_give_out_twice() -> None:
    """After the loss of a node, or where the nodes' fragments do not do."""
    layout = Layout.of((Node(2, 2), Node(2, 2)), [held(1, workers=3, cpus=2, gpus=2), held(2)])
    assert (layout.pool.cpus, layout.pool.gpus) == (-3, -3)
    assert layout.pool.room(Gang(1, 1, 1)) == 0
    fragments = Layout.of((Node(3, 3), Node(3, 3)), [held(1, workers=3, cpus=2, gpus=2)])
    assert (fragments.pool.cpus, fragments.pool.gpus) == (0, 0)
    assert fragments.pool.room(Gang(1, 1, 1)) == 0
    assert fragments.pool.place(Gang(1, 1, 1), 1) is None
    assert Layout.of((), [held(1)]).pool == Pool(())


def test_a_tenant_grows_and_is_stopped() -> None:
    layout = Layout.of((Node(4, 4),), [held(1), held(2)])
    layout.extend("job-2", 2, ((0, 2),))
    layout.stop(["job-1"])
    assert layout.pool.nodes == (Node(0, 0),)
    assert [(t.holding.workers, t.holding.is_stopping) for t in layout.tenants] == [(1, True), (3, False)]
    assert vacated(layout.pool, layout.tenants).nodes == layout.nodes


def packs(nodes: Sequence[tuple[int, int]], workers: Sequence[tuple[int, int]]) -> bool:
    """Whether some placement of single workers exists, by trying all."""
    if not workers:
        return True
    (cpus, gpus), rest = workers[0], workers[1:]
    for i in range(len(nodes)):
        if nodes[i] in nodes[:i] or nodes[i][0] < cpus or nodes[i][1] < gpus:
            continue
        left = [*nodes[:i], (nodes[i][0] - cpus, nodes[i][1] - gpus), *nodes[i + 1 :]]
        if packs(left, rest):
            return True
    return False


@settings(derandomize=True, deadline=None, max_examples=80)
@given(clusters, gangs, st.integers(1, 4))
def test_a_gang_alone_is_placed_exactly_if_it_can_be(nodes: list[Node], gang: Gang, workers: int) -> None:
    pool = Pool(tuple(nodes))
    workers = min(workers, gang.max_workers)
    places = pool.place(gang, workers)
    assert (places is not None) == packs([(n.cpus, n.gpus) for n in nodes], [(gang.cpus, gang.gpus)] * workers)
    assert (places is not None) == (pool.room(gang) >= workers)
    if places is not None:
        assert sum(count for _, count in places) == workers
        assert all(node.cpus >= 0 and node.gpus >= 0 for node in pool.minus(gang, places).nodes)


@settings(derandomize=True, deadline=None, max_examples=80)
@given(clusters, holdings(), gangs, st.randoms())
def test_room_beside_holders_is_never_more_than_the_sums(
    nodes: list[Node], running: list[Holding], gang: Gang, rng: object
) -> None:
    layout = Layout.of(nodes, running)
    taken = layout.pool.room(gang)
    cpus = sum(node.cpus for node in nodes) - sum(h.workers * h.gang.cpus for h in running)
    gpus = sum(node.gpus for node in nodes) - sum(h.workers * h.gang.gpus for h in running)
    assert (layout.pool.cpus, layout.pool.gpus) == (cpus, gpus)
    assert taken * gang.cpus <= max(cpus, 0)
    assert taken * gang.gpus <= max(gpus, 0)
    rng.shuffle(running)  # type: ignore[attr-defined]
    assert Layout.of(nodes, running) == layout
