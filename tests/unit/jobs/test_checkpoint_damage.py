"""Damage to checkpoints: every flipped byte is found, and what is left is used or the attempt fails by name."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from segfleet.errors import CheckpointError
from segfleet_jobs import checkpoint as module
from segfleet_jobs.checkpoint import FILES, CheckpointRecord, load_checkpoint, write_checkpoint
from segfleet_jobs.checkpoint_store import FolderStore, load_latest, prune

NUM_FLIPS = 200


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path, tmp_path / "job-a1")


def save(store: FolderStore, step: int) -> CheckpointRecord:
    model = {"w": torch.full((8, 8), float(step)), "flag": torch.tensor([True, False])}
    state = {"optimizer/w/step": torch.tensor(float(step)), "random/cpu/0": torch.arange(64, dtype=torch.uint8)}
    return store.save(step, model, state, {"best": None, "scores": {"miou": 0.25}, "world_size": 2})


def flip(folder: Path, rng: random.Random) -> str:
    """Change one bit of one byte, every byte of all files being as likely; the file's name."""
    sizes = [(folder / name).stat().st_size for name in FILES]
    name = rng.choices(FILES, sizes)[0]
    content = bytearray((folder / name).read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    (folder / name).write_bytes(content)
    return name


def test_each_of_many_flipped_bits_is_found_and_the_earlier_checkpoint_is_used(store: FolderStore) -> None:
    save(store, 10)
    rng, hit = random.Random(7), set()
    record = save(store, 20)
    folder = Path(record.path)
    before = {name: (folder / name).read_bytes() for name in FILES}
    for number in range(NUM_FLIPS):
        hit.add(flip(folder, rng))
        found, damaged = load_latest(store, record)
        assert found is not None
        assert found.step == 10, number
        assert len(damaged) == 1
        assert record.path in damaged[0]
        for name, content in before.items():
            (folder / name).write_bytes(content)
    assert hit == set(FILES)
    assert load_latest(store, record)[1] == []


def test_each_of_many_flipped_bits_of_the_earlier_one_is_found_too(store: FolderStore) -> None:
    # Of it the service has no digest any more: the checkpoint must know its own.
    earlier, record = save(store, 10), save(store, 20)
    flip(Path(record.path), random.Random(0))
    rng, folder = random.Random(8), Path(earlier.path)
    before = {name: (folder / name).read_bytes() for name in FILES}
    for _ in range(NUM_FLIPS):
        flip(folder, rng)
        with pytest.raises(CheckpointError, match=r"no whole checkpoint is left: .*00000020.*00000010.*--from-start"):
            load_latest(store, record)
        for name, content in before.items():
            (folder / name).write_bytes(content)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_damage(store: FolderStore, name: str) -> None:
    save(store, 10)
    record = save(store, 20)
    (Path(record.path) / name).unlink()
    found, damaged = load_latest(store, record)
    assert found is not None
    assert (found.step, len(damaged)) == (10, 1)


def test_a_checkpoint_of_format_1_has_no_seal_and_is_read(store: FolderStore) -> None:
    record = save(store, 10)
    meta = Path(record.path) / "meta.json"
    meta.write_text(meta.read_text().replace('"format": 2', '"format": 1'))
    (meta.parent / "meta.sha256").unlink()
    assert load_checkpoint(meta.parent).step == 10
    meta.write_text(meta.read_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(CheckpointError, match=r"meta\.sha256"):
        load_checkpoint(meta.parent)


def test_an_older_checkpoint_stays_until_two_newer_ones_are_whole(store: FolderStore) -> None:
    save(store, 10)
    second = save(store, 20)
    (Path(second.path) / "model.safetensors").write_bytes(b"cut")
    record = save(store, 30)
    damaged = prune(store, record)
    assert sorted(place.step for place in store.places()) == [10, 30]
    assert len(damaged) == 1
    assert second.path in damaged[0]
    assert prune(store, save(store, 40)) == []
    assert sorted(place.step for place in store.places()) == [30, 40]


def test_what_the_disk_does_not_give_back_as_it_was_is_no_checkpoint(
    store: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(store, 10)
    real = module.save_file

    def lying(tensors: dict[str, torch.Tensor], path: Path) -> None:
        real(tensors, path)
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)

    monkeypatch.setattr(module, "save_file", lying)
    with pytest.raises(OSError, match="does not hold what was written"):
        save(store, 20)
    assert [place.step for place in store.places()] == [10]


def test_tensors_that_are_no_numbers_are_compared_by_their_bits(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, 1, {"w": torch.tensor([float("nan"), -0.0])}, {}, {"best": None})
