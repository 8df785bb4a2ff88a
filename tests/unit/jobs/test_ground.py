"""What a driver does when machines below its workers go: the decision, and what follows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pytest

from segfleet.queue.scheduling.values import Gang, Node
from segfleet_jobs.evacuation import Evacuation
from segfleet_jobs.ground import SHORT_S, Footing, Leaving, Machine, Short, look

A, B, C = (Machine(name, f"10.0.0.{number}", Node(1, 0)) for number, name in enumerate("abc", 1))
PAIR = Gang(2, 1, 0)


def gone(machine: Machine) -> Machine:
    return replace(machine, is_alive=False)


def going(machine: Machine, at: float = 0.0) -> Machine:
    return replace(machine, leaves_at=at)


@pytest.mark.parametrize(
    ("machines", "standing", "fallen", "expected"),
    [
        pytest.param([], "ab", "", None, id="ray was not asked yet"),
        pytest.param([A, B], "ab", "", None, id="all is well"),
        pytest.param([A, going(B)], "ab", "", Leaving((going(B),)), id="one goes"),
        pytest.param([A, B, going(C)], "ab", "", None, id="another one goes"),
        pytest.param([A, gone(going(B))], "a", "", None, id="gone while a rank goes on"),
        pytest.param([A, gone(B)], "a", "b", None, id="ray has not ended the group yet"),
        pytest.param([A, gone(B)], "", "ab", Short((gone(B),)), id="lost, no room"),
        pytest.param([A, gone(B), C], "", "ab", None, id="lost, room elsewhere"),
        pytest.param([A, gone(B), going(C)], "", "ab", Short((gone(B),)), id="no room on one that goes"),
        pytest.param([A, going(B)], "", "ab", Short((going(B),)), id="nobody is left to write a checkpoint"),
        pytest.param([A], "", "", None, id="not begun: the cluster may grow"),
        pytest.param([A, going(B)], "", "", Short((going(B),)), id="not begun, planned onto one that goes"),
        pytest.param([A, B, going(C)], "", "", None, id="not begun, room elsewhere"),
        pytest.param([going(C)], "", "", None, id="not begun, never enough"),
        pytest.param([A], "", "a", None, id="no machine was lost"),
    ],
)
def test_the_decision(machines: list[Machine], standing: str, fallen: str, expected: Leaving | Short | None) -> None:
    assert look(machines, set(standing), set(fallen), PAIR) == expected


def test_gpus_count_too() -> None:
    rest = replace(A, room=Node(8, 1))
    assert isinstance(look([rest, gone(B)], (), "ab", Gang(2, 1, 1)), Short)
    assert look([replace(rest, room=Node(8, 2)), gone(B)], (), "ab", Gang(2, 1, 1)) is None


def test_a_shortage_counts_when_it_lasts() -> None:
    footing, short = Footing(PAIR), [A, gone(B)]
    assert footing.look(short, (), "ab", 0.0) is None
    assert footing.look([A, gone(B), C], (), "ab", 4.0) is None
    assert footing.look(short, (), "ab", 6.0) is None
    assert footing.look(short, (), "ab", 6.0 + SHORT_S) == Short((gone(B),))


def test_a_shortage_names_what_was_lost() -> None:
    assert str(Short((A, B))) == "without nodes 10.0.0.1, 10.0.0.2 there is no room for all workers"


@dataclass
class FakeCluster:
    table: list[Machine]
    asked: int = 0
    left: list[list[str]] = field(default_factory=list)
    ends: list[tuple[str, bool]] = field(default_factory=list)
    refuses: bool = False

    def leaving(self) -> dict[str, float]:
        return {machine.node: machine.leaves_at for machine in self.table if machine.leaves_at is not None}

    def machines(self) -> Sequence[Machine]:
        self.asked += 1
        return self.table

    def leave(self, machines: Sequence[Machine]) -> None:
        if self.refuses:
            raise ConnectionError("the service is away")
        self.left.append([machine.address for machine in machines])

    def end(self, why: str, was_asked: bool) -> None:
        self.ends.append((why, was_asked))


def test_each_machine_that_goes_is_told_of_once_and_again_until_the_service_hears_it() -> None:
    cluster = FakeCluster([A, B])
    evacuation = Evacuation(PAIR, cluster, cluster.leave, cluster.end)
    evacuation.look({"a", "b"}, (), 0.0)
    assert cluster.asked == 0  # the table of a large cluster is large
    cluster.table, cluster.refuses = [A, going(B, 60.0)], True
    with pytest.raises(ConnectionError):
        evacuation.look({"a", "b"}, (), 2.0)
    cluster.refuses = False
    for now in (4.0, 6.0):
        evacuation.look({"a", "b"}, (), now)
    cluster.table = [going(A), going(B, 60.0)]
    evacuation.look({"a", "b"}, (), 8.0)
    assert cluster.left == [["10.0.0.2"], ["10.0.0.1"]]
    assert cluster.ends == []


@pytest.mark.parametrize("is_asked", [False, True])
def test_an_attempt_without_room_is_ended_as_what_it_is(is_asked: bool) -> None:
    cluster = FakeCluster([A, going(B)] if is_asked else [A, B])
    evacuation = Evacuation(PAIR, cluster, cluster.leave, cluster.end)
    evacuation.look({"a", "b"}, (), 0.0)
    cluster.table = [A, gone(B)]
    for now in (2.0, 2.0 + SHORT_S):
        evacuation.look((), {"a", "b"}, now)
    assert cluster.ends == [("without node 10.0.0.2 there is no room for all workers", is_asked)]


def test_an_attempt_that_was_planned_onto_a_machine_that_goes_tells_of_it_and_gives_its_place_back() -> None:
    cluster = FakeCluster([A, going(B)])
    evacuation = Evacuation(PAIR, cluster, cluster.leave, cluster.end)
    for now in (0.0, SHORT_S):
        evacuation.look((), (), now)
    assert cluster.left == [["10.0.0.2"]]
    assert [is_asked for _, is_asked in cluster.ends] == [True]


def test_one_group_of_many_is_not_the_attempt() -> None:
    cluster = FakeCluster([A, gone(B)])
    evacuation = Evacuation(PAIR, cluster, cluster.leave, None)
    for now in (0.0, SHORT_S):
        evacuation.look((), {"a", "b"}, now)
    assert cluster.asked == 2
