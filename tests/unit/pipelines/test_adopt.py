from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
import webdataset as wds
from PIL import Image

from segfleet.errors import DataError
from segfleet.spec.kinds import PrepareSpec
from segfleet_pipelines.manifest import Manifest
from segfleet_pipelines.mask_codec import pack_mask
from segfleet_pipelines.reader import SampleIndex
from segfleet_pipelines.tool import main
from segfleet_pipelines.verify import check_shards, verify
from segfleet_pipelines.writer import prepare

Spec = Callable[..., PrepareSpec]
Member = tuple[str, bytes]


def encoded(pixels: np.ndarray, fmt: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format=fmt)
    return buffer.getvalue()


def picture(seed: int, height: int = 20, width: int = 30) -> bytes:
    return encoded(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8), "JPEG")


def labels(seed: int, top: int = 3, height: int = 20, width: int = 30) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, top, (height, width), dtype=np.uint8)


def sample(key: str, seed: int = 0, top: int = 3) -> list[Member]:
    return [(f"{key}.jpg", picture(seed)), (f"{key}.png", encoded(labels(seed, top), "PNG"))]


def write_tar(path: Path, members: Iterable[Member]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), 1
            tar.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """Shards as webdataset itself writes them, of four samples in two shards and two splits."""
    folder = tmp_path / "made"
    folder.mkdir()
    (folder / "classes.yaml").write_text("names: [sky, road, tree]\n")
    for name, seeds in (("train-000000", (0, 1)), ("train-000001", (2,)), ("val_00", (3,))):
        with wds.TarWriter(str(folder / f"{name}.tar")) as tar:
            for seed in seeds:
                tar.write(
                    {"__key__": f"k{seed}", "jpg": picture(seed), "png": encoded(labels(seed), "PNG"), "cls": b"1"}
                )
    return folder


def adopt(prepare_spec: Spec, raw: Path, out: Path, **changes: object) -> Manifest:
    return prepare(prepare_spec(adopt=True, raw=str(raw), out=str(out), **changes))


def test_shards_made_elsewhere_are_indexed_without_being_touched(
    made: Path, tmp_path: Path, prepare_spec: Spec
) -> None:
    before = {path.name: path.read_bytes() for path in made.iterdir()}
    manifest = adopt(prepare_spec, made, tmp_path / "out")
    assert {name: split.num_samples for name, split in manifest.splits.items()} == {"train": 3, "val": 1}
    assert manifest.class_names == ("sky", "road", "tree")
    assert verify(tmp_path / "out").problems == ()
    assert check_shards(tmp_path / "out", "train") == frozenset()
    index = SampleIndex.load(tmp_path / "out", "train")
    for i in range(3):
        assert index.read_sample(i) == (f"k{i}", picture(i), encoded(labels(i), "PNG"))
        assert index.class_pixels[i].tolist() == np.bincount(labels(i).ravel()).tolist()
    assert {path.name: path.read_bytes() for path in made.iterdir()} == before
    assert (tmp_path / "out" / "val_00.tar").samefile(made / "val_00.tar")


def test_index_and_manifest_can_lie_beside_the_shards(made: Path, prepare_spec: Spec) -> None:
    before = {path.name for path in made.iterdir()}
    manifest = adopt(prepare_spec, made, made)
    assert {path.name for path in made.iterdir()} - before == {"samples.parquet", "manifest.json"}
    assert verify(made).problems == ()
    assert Manifest.load(made) == manifest
    with pytest.raises(DataError, match="holds a prepared dataset already"):
        adopt(prepare_spec, made, made)


def test_an_index_of_another_program_is_not_written_over(made: Path, prepare_spec: Spec) -> None:
    index = made / "samples.parquet"
    index.write_bytes(b"of another program")
    with pytest.raises(DataError, match=r"samples\.parquet is of another program"):
        adopt(prepare_spec, made, made)
    assert index.read_bytes() == b"of another program"
    index.unlink()
    first = adopt(prepare_spec, made, made)
    (made / "manifest.json").unlink()
    assert adopt(prepare_spec, made, made) == first


def test_a_picture_too_large_for_memory_is_refused(
    made: Path, tmp_path: Path, prepare_spec: Spec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("segfleet_pipelines.datasets.sources.MAX_MEMBER_BYTES", 500)
    with pytest.raises(DataError, match=r"'k0\.jpg': .* bytes; no picture is that large"):
        adopt(prepare_spec, made, tmp_path / "out")


@pytest.mark.integration
def test_the_number_of_processes_changes_nothing(made: Path, tmp_path: Path, prepare_spec: Spec) -> None:
    first = adopt(prepare_spec, made, tmp_path / "a", processes=1)
    assert adopt(prepare_spec, made, tmp_path / "b", processes=2) == first
    assert (tmp_path / "a/samples.parquet").read_bytes() == (tmp_path / "b/samples.parquet").read_bytes()


def test_shards_are_copied_where_they_cannot_be_linked(
    made: Path, tmp_path: Path, prepare_spec: Spec, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    adopt(prepare_spec, made, tmp_path / "out")
    assert not (tmp_path / "out/val_00.tar").samefile(made / "val_00.tar")
    assert verify(tmp_path / "out").problems == ()


def test_linked_shards_are_adopted_by_what_they_lead_to(made: Path, tmp_path: Path, prepare_spec: Spec) -> None:
    real = (made / "val_00.tar").rename(tmp_path / "disk")
    (made / "val_00.tar").symlink_to(real)
    adopt(prepare_spec, made, tmp_path / "out")
    assert not (tmp_path / "out/val_00.tar").is_symlink()
    assert verify(tmp_path / "out").problems == ()


def test_our_own_shards_and_packed_masks_can_be_adopted(
    shared_dataset: Path, tmp_path: Path, prepare_spec: Spec
) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    for path in shared_dataset.glob("*.tar"):
        os.link(path, raw / path.name)
    write_tar(
        raw / "extra-0.tar",
        [("x.png", encoded(labels(1), "PNG")), ("x.npy.zst", pack_mask(labels(1)))],
    )
    (raw / "classes.yaml").write_text("names: [sky, road, tree]\ncolors: [[0, 0, 255], [9, 9, 9], [0, 99, 0]]\n")
    manifest = adopt(prepare_spec, raw, tmp_path / "out")
    prepared = Manifest.load(shared_dataset)
    assert {name: manifest.splits[name] for name in prepared.splits} == prepared.splits
    assert verify(tmp_path / "out").problems == ()


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train-000001.tar", "train"),
        ("val_7.tar", "val"),
        ("ade20k-train-000-of-012.tar", "ade20k-train"),
        ("test.tar", "test"),
        ("train-2-0001.tar", "train-2"),
    ],
)
def test_splits_follow_from_the_names_of_the_shards(tmp_path: Path, prepare_spec: Spec, name: str, split: str) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / "classes.yaml").write_text("names: [sky, road, tree]\n")
    write_tar(raw / name, sample("a"))
    assert list(adopt(prepare_spec, raw, tmp_path / "out").splits) == [split]


def test_shards_keep_the_order_of_their_numbers(tmp_path: Path, prepare_spec: Spec) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / "classes.yaml").write_text("names: [sky, road, tree]\n")
    for number in (10, 9, 2):
        write_tar(raw / f"train-{number}.tar", sample(f"k{number}"))
    shards = adopt(prepare_spec, raw, tmp_path / "out").split("train").shards
    assert [shard.file for shard in shards] == ["train-2.tar", "train-9.tar", "train-10.tar"]


@pytest.mark.parametrize("kind", ["ade20k", "camvid", "cityscapes", "pascal_context", "pascal_context_59", "voc"])
def test_known_datasets_bring_their_own_classes(made: Path, tmp_path: Path, prepare_spec: Spec, kind: str) -> None:
    (made / "classes.yaml").unlink()
    manifest = adopt(prepare_spec, made, tmp_path / "out", dataset=kind)
    assert manifest.name == kind
    assert manifest.num_classes == {
        "ade20k": 150, "camvid": 11, "cityscapes": 19, "pascal_context": 60, "pascal_context_59": 59, "voc": 21
    }[kind]  # fmt: skip
    assert manifest.ignore_index == 255


def test_labels_that_are_not_final_are_an_error_with_their_values(
    made: Path, tmp_path: Path, prepare_spec: Spec
) -> None:
    mask = labels(5)
    mask[0, :2] = 150, 200
    write_tar(made / "train-000002.tar", [("odd.jpg", picture(5)), ("odd.png", encoded(mask, "PNG"))])
    with pytest.raises(DataError) as error:
        adopt(prepare_spec, made, tmp_path / "out")
    assert "must hold final labels" in str(error.value)
    assert "shard 'train-000002.tar', 'odd.png': label 150, 200 out of range; allowed: 0-2, 255" in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_label_map_would_have_to_be_applied_and_is_refused(made: Path, tmp_path: Path, prepare_spec: Spec) -> None:
    (made / "classes.yaml").write_text("names: [sky, road, tree]\nlabel_map: {0: 255, 1: 0, 2: 1, 3: 2}\n")
    with pytest.raises(DataError, match="label_map cannot be used on adopted shards"):
        adopt(prepare_spec, made, tmp_path / "out")


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:1500])


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "a pickle": (
        lambda raw: write_tar(raw / "x-0.tar", [*sample("a"), ("a.pkl", b"cos\nsystem\n")]),
        "'a.pkl' is a pickle",
    ),
    "no mask": (lambda raw: write_tar(raw / "x-0.tar", sample("a")[:1]), "key 'a': no mask among a.jpg"),
    "no picture": (lambda raw: write_tar(raw / "x-0.tar", sample("a")[1:]), "key 'a': no picture among a.png"),
    "a key twice in a shard": (
        lambda raw: write_tar(raw / "x-0.tar", [*sample("a"), *sample("b"), *sample("a")]),
        "key 'a' comes twice",
    ),
    "a key in two shards": (
        lambda raw: write_tar(raw / "x-0.tar", sample("k1")),
        "key 'k1' is in train-000000.tar and in x-0.tar",
    ),
    "folders": (lambda raw: write_tar(raw / "x-0.tar", sample("train/a")), "'train/a.jpg' lies in a folder"),
    "a way out": (lambda raw: write_tar(raw / "x-0.tar", sample("../../a")), "'../../a.jpg' lies in a folder"),
    "a colour mask": (
        lambda raw: write_tar(
            raw / "x-0.tar", [("a.jpg", picture(0)), ("a.png", encoded(labels(0)[..., None].repeat(3, 2), "PNG"))]
        ),
        "'a.png': the mask is PNG of mode RGB",
    ),
    "another size": (
        lambda raw: write_tar(raw / "x-0.tar", [("a.jpg", picture(0)), ("a.png", encoded(labels(0)[1:], "PNG"))]),
        "'a.png': 30x19 pixels, but its picture has 30x20",
    ),
    "a packed mask of another size": (
        lambda raw: write_tar(raw / "x-0.tar", [("a.jpg", picture(0)), ("a.npy.zst", pack_mask(labels(0)[1:]))]),
        "'a.npy.zst': the mask is damaged, or has not 30x20 pixels",
    ),
    "a damaged picture": (
        lambda raw: write_tar(raw / "x-0.tar", [("a.jpg", picture(0)[:-100]), sample("a")[1]]),
        "shard 'x-0.tar', 'a.jpg': damaged or cut short",
    ),
    "another format": (
        lambda raw: write_tar(raw / "x-0.tar", [("a.jpg", encoded(labels(0), "GIF")), sample("a")[1]]),
        "'a.jpg': neither a readable JPEG nor a readable PNG",
    ),
    "a cut shard": (
        lambda raw: _cut(write_tar(raw / "x-0.tar", sample("a"))),
        "shard 'x-0.tar' is not a sound tar file",
    ),
    "an empty shard": (lambda raw: write_tar(raw / "x-0.tar", []), "shard 'x-0.tar' holds no sample"),
    "a compressed shard": (lambda raw: (raw / "x-0.tar.gz").write_bytes(b""), "x-0.tar.gz: compressed"),
    "a name that is none": (lambda raw: write_tar(raw / "a b-0.tar", sample("a")), "'a b-0.tar': no name for a shard"),
    "a split that is none": (lambda raw: write_tar(raw / "Train-0.tar", sample("a")), "'Train' cannot name a split"),
    "a folder as a shard": (lambda raw: (raw / "x-0.tar").mkdir(), "x-0.tar: not a file"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_or_unclear_is_named_and_nothing_is_written(
    made: Path, tmp_path: Path, prepare_spec: Spec, name: str
) -> None:
    """F62, F65, F66: what a shard made elsewhere may be spoilt by."""
    spoil, message = BAD[name]
    spoil(made)
    for out in (tmp_path / "out", made):
        with pytest.raises(DataError) as error:
            adopt(prepare_spec, made, out)
        assert message in str(error.value)
    assert not (tmp_path / "out").exists()
    assert not (made / "manifest.json").exists()


def test_all_problems_are_listed_at_once(made: Path, tmp_path: Path, prepare_spec: Spec) -> None:
    for name in ("a pickle", "a key in two shards"):
        spoil, _ = BAD[name]
        spoil(made)
        (made / "x-0.tar").rename(made / f"{name.replace(' ', '')}-0.tar")
    write_tar(made / "z-0.tar", [("odd.jpg", picture(5)), ("odd.png", encoded(labels(5) + 100, "PNG"))])
    with pytest.raises(DataError) as error:
        adopt(prepare_spec, made, tmp_path / "out")
    text = str(error.value)
    assert "(3):" in text
    assert all(part in text for part in ("is a pickle", "key 'k1' is in", "label 100, 101, 102 out of range"))


def test_a_sample_cut_over_two_shards_is_never_paired(made: Path, tmp_path: Path, prepare_spec: Spec) -> None:
    """F63: the picture ends one shard, its mask begins the next."""
    one, other = sample("cut", 1), sample("cut", 2)
    write_tar(made / "x-0.tar", [*sample("a"), one[0]])
    write_tar(made / "x-1.tar", [other[1], *sample("b")])
    with pytest.raises(DataError) as error:
        adopt(prepare_spec, made, tmp_path / "out")
    assert "key 'cut' is in x-0.tar and in x-1.tar: two samples, or one that was cut apart" in str(error.value)


def test_a_shard_that_grows_while_it_is_read_is_refused(
    made: Path, tmp_path: Path, prepare_spec: Spec, monkeypatch: pytest.MonkeyPatch
) -> None:
    stamps = iter(["1", "2", "3", "4", "5", "6"])
    monkeypatch.setattr("segfleet_pipelines.adopt_shard.file_stamp", lambda _path: next(stamps))
    with pytest.raises(DataError, match="has changed while it was read"):
        adopt(prepare_spec, made, tmp_path / "out")


def test_a_folder_without_shards_is_refused(tmp_path: Path, prepare_spec: Spec) -> None:
    (tmp_path / "classes.yaml").write_text("names: [sky, road, tree]\n")
    with pytest.raises(DataError, match=r"holds no \.tar file"):
        adopt(prepare_spec, tmp_path, tmp_path / "out")


def test_the_command_adopts(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prepare", "folder", "--adopt", "--raw", str(made), "--out", str(made), "--processes", "1"]) == 0
    assert "3 train, 1 val, 3 classes" in capsys.readouterr().out
    assert main(["verify", str(made)]) == 0
    assert main(["prepare", "folder", "--adopt", "--raw", str(made), "--out", "x", "--images", "jpeg95"]) == 2
    assert "nothing is rewritten" in capsys.readouterr().err


def test_a_run_after_mending_checks_only_what_is_not_indexed_yet(
    made: Path, tmp_path: Path, prepare_spec: Spec, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tar(made / "x-0.tar", sample("odd", top=9))
    with pytest.raises(DataError, match="out of range"):
        adopt(prepare_spec, made, tmp_path / "out", processes=1)
    write_tar(made / "x-0.tar", sample("odd"))
    checked: list[bytes] = []
    monkeypatch.setattr("segfleet_pipelines.adopt_shard.check_pixels", checked.append)
    adopt(prepare_spec, made, tmp_path / "out", processes=1)
    assert checked == [picture(0)]
    assert verify(tmp_path / "out").problems == ()
    assert not list(tmp_path.glob(".out.partial"))
