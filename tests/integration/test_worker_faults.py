"""Two real ranks of which one hangs or lags: who is named, in which phase, how soon, and with whose stacks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest
from torch.multiprocessing import ProcessExitedException

from segfleet_jobs.faults import end_process
from segfleet_jobs.loop import TrainingLoop
from segfleet_jobs.watchdog import Beat, Rules
from segfleet_jobs.watching import Watcher
from stuck import FAULTY_RANK, FAULTY_STEP, slow_the_loader, stall_the_loader, stop_itself
from training import make_dataset, make_train_spec, run_group

pytestmark = pytest.mark.integration
# A fifth of the real limits: on a busy machine shorter ones take a pause for a hang.
RULES = Rules(still_s=10.0, times=5.0, first_s=50.0, silent_s=12.0, slow_steps=5)


@dataclass
class Told:
    faults: list[tuple[str, str, int | None, str | None, int | None]] = field(default_factory=list)
    killed: list[int] = field(default_factory=list)

    def __call__(self, kind: str, message: str, *, rank: int | None, phase: str | None, step: int | None) -> None:
        self.faults.append((kind, message, rank, phase, step))

    def kill(self, beat: Beat) -> None:
        self.killed.append(beat.rank)
        assert end_process(beat.pid, beat.created)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_dataset(tmp_path_factory.mktemp("boxes"))


def train(shards: str, folder: Path, fault: Callable[[TrainingLoop, int, Path], None], told: Told) -> None:
    spec = make_train_spec(shards, "train.steps=10", "train.validate_every=10", "train.checkpoint_every=10")
    with Watcher(folder / "beats", told, told.kill, RULES, look_s=0.2):
        run_group(spec, folder / "job", 2, before=partial(fault, folder=folder / "beats"))


@pytest.mark.parametrize(
    ("fault", "phase"),
    [
        pytest.param(stop_itself, "forward", id="stopped"),
        pytest.param(stall_the_loader, "data", id="loader"),
    ],
)
def test_a_rank_that_hangs_is_named_shown_and_ended(
    shards: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    fault: Callable[[TrainingLoop, int, Path], None],
    phase: str,
) -> None:
    told = Told()
    with pytest.raises(ProcessExitedException, match="SIGKILL"):
        train(shards, tmp_path, fault, told)
    ((kind, message, rank, where, step),) = told.faults
    assert (kind, rank, where, step) == ("fault", FAULTY_RANK, phase, FAULTY_STEP)
    assert message.startswith(f"rank {FAULTY_RANK} ")
    assert told.killed == [FAULTY_RANK]
    log = capsys.readouterr().out
    waiting, hanging = log.split("segfleet: rank 1, ")
    assert "segfleet: rank 0, all-reduce" in waiting
    assert "step.py" in waiting
    expected = "no answer: the process does not run" if fault is stop_itself else "stuck.py"
    assert expected in hanging


def test_a_straggler_is_named_with_its_phase_and_not_ended(shards: str, tmp_path: Path) -> None:
    told = Told()
    train(shards, tmp_path, slow_the_loader, told)
    assert told.killed == []
    ((kind, _, rank, phase, _),) = told.faults
    assert (kind, rank, phase) == ("straggler", FAULTY_RANK, "data")
