from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from segfleet.errors import DataError
from segfleet.spec.kinds import PrepareSpec
from segfleet.spec.resolve import resolve_spec
from segfleet.spec.sections import DataSpec, MixSpec
from segfleet_jobs.checked_data import check_data
from segfleet_pipelines.manifest import Manifest
from segfleet_pipelines.reader import SampleIndex
from segfleet_pipelines.shuffle import used_samples
from segfleet_pipelines.writer import prepare
from training import make_dataset


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """101 training samples, of which a budget of 1 % lets one go."""
    return Path(make_dataset(tmp_path_factory.mktemp("boxes"), num_samples=106))


@pytest.fixture
def damaged(sound: Path, tmp_path: Path) -> Path:
    """A copy with one changed byte, in training sample 7."""
    folder = shutil.copytree(sound, tmp_path / "damaged")
    index = SampleIndex.load(folder, "train")
    _, image, _ = index.read_sample(7)
    shard = folder / index.shard_of(7)
    data = bytearray(shard.read_bytes())
    data[data.index(image) + 40] ^= 1
    shard.write_bytes(data)
    return folder


def test_sound_data_leave_nothing_out(sound: Path) -> None:
    found = check_data(DataSpec(shards=str(sound), mix=(MixSpec(shards=str(sound), split="val"),)))
    content_id = Manifest.load(sound).content_id
    assert (found.content_ids, found.skips, found.left_out) == ((content_id,) * 2, (frozenset(), frozenset()), ())


def test_damage_without_a_budget_fails_with_shard_and_key(damaged: Path) -> None:
    key = SampleIndex.load(damaged, "train").keys[7]
    with pytest.raises(DataError, match=rf"train-000000.tar(?s:.*){key}"):
        check_data(DataSpec(shards=str(damaged)))


def test_damage_within_the_budget_is_left_out_and_named(sound: Path, damaged: Path) -> None:
    mix = (MixSpec(shards=str(damaged)),)
    found = check_data(DataSpec(shards=str(sound), mix=mix, skip_budget=0.01))
    assert found.skips == (frozenset(), frozenset({7}))
    key = SampleIndex.load(damaged, "train").keys[7]
    assert found.left_out == (f"{damaged}, shard 'train-000000.tar', key '{key}'",)


def test_validation_has_no_budget(damaged: Path) -> None:
    with pytest.raises(DataError, match=r"train-000000.tar"):
        check_data(DataSpec(shards=str(damaged), train="val", val="train", skip_budget=0.01))


@pytest.mark.integration
def test_what_looks_odd_about_the_labels_is_told(tmp_path: Path) -> None:
    make_dataset(tmp_path, num_samples=6)
    classes = tmp_path / "raw" / "classes.yaml"
    classes.write_text(classes.read_text().replace("]", ", unicorn]", 1))
    spec = resolve_spec(
        {
            "kind": "prepare",
            "name": "odd",
            "dataset": "folder",
            "raw": str(tmp_path / "raw"),
            "out": str(tmp_path / "o"),
        }
    )
    assert isinstance(spec, PrepareSpec)
    prepare(spec)
    warnings = check_data(DataSpec(shards=str(tmp_path / "o"))).warnings
    assert len([text for text in warnings if "unicorn" in text]) == 2  # of train and of val


def test_damage_outside_the_share_is_unused_not_left_out(damaged: Path) -> None:
    used = used_samples(101, 0.1).tolist()
    assert 7 not in used
    found = check_data(DataSpec(shards=str(damaged), share=0.1, skip_budget=0.01))
    assert (found.skips, found.left_out, found.num_unused) == ((frozenset(),), (), 91)
    assert found.tags == {"segfleet.skipped_samples": "0", "segfleet.unused_samples": "91"}
