from __future__ import annotations

import pytest

from segfleet_pipelines.pairing import pair_members
from segfleet_pipelines.tar_walk import TarMember


def members(*names: str) -> list[TarMember]:
    return [TarMember(name, 512 * (i + 1), 7) for i, name in enumerate(names)]


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("k.jpg", "k.png"),
        ("k.JPG", "k.PNG"),
        ("k.jpeg", "k.seg.png"),
        ("k.jpg", "k.mask.png"),
        ("k.png", "k.mask.png"),
        ("k.png", "k.npy.zst"),
        ("k.image.png", "k.png"),
        ("k.image.jpg", "k.mask.npy.zst"),
    ],
)
def test_the_one_picture_and_the_one_mask_are_found_in_any_order(image: str, mask: str) -> None:
    for names in ((image, mask, "k.json"), ("k.cls", mask, image)):
        paired = pair_members(members(*names))
        assert paired.problems == ()
        (sample,) = paired.samples
        assert (sample.key, sample.image.name, sample.mask.name) == ("k", image, mask)
        assert sample.rest(sample.mask) == mask[2:]


def test_samples_keep_their_order() -> None:
    paired = pair_members(members("b.jpg", "b.png", "a.png", "a.jpg"))
    assert [sample.key for sample in paired.samples] == ["b", "a"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["k.jpg"], "key 'k': no mask among k.jpg"),
        (["k.png"], "key 'k': no picture among k.png"),
        (["k.mask.png", "k.json"], "key 'k': no picture among k.mask.png, k.json"),
        (["k.jpg", "k.png", "k.seg.png"], "key 'k': 2 masks among k.seg.png, k.png"),
        (["k.jpg", "k.jpeg", "k.png"], "key 'k': 2 pictures among k.jpg, k.jpeg"),
        (["k.jpg", "k.JPG", "k.png"], "key 'k': two members 'k.JPG'"),
        (["k.jpg", "k.png", "k.depth.png"], "'k.depth.png' is no picture, mask or note"),
        (["k.jpg", "k.png", "k.npy"], "'k.npy' is no picture, mask or note"),
        (["k.jpg", "k.png", "k."], "'k.' is no picture, mask or note"),
        *((["k.jpg", "k.png", f"k.{rest}"], "is a pickle") for rest in ("pkl", "pyd", "PTH", "pt", "pickle", "pkl.gz")),
        (["train/k.jpg", "train/k.png"], "'train/k.jpg' lies in a folder"),
        (["../k.jpg", "../k.png"], "'../k.jpg' lies in a folder"),
        (["/k.jpg", "/k.png"], "'/k.jpg' lies in a folder"),
        (["train\\k.jpg"], "lies in a folder"),
        ([".jpg", ".png"], "'.jpg' has no usable key"),
        (["\x1b[2J.jpg"], "has no usable key"),
        (["\udcff.jpg"], "has no usable key"),
        (["k" * 201 + ".jpg"], "has no usable key"),
        (["k.jpg", "k.png", "l.jpg", "l.png", "k.jpg", "k.png"], "key 'k' comes twice"),
    ],
)
def test_what_is_unclear_is_named_and_never_paired(names: list[str], message: str) -> None:
    """F63, F66, S8, S19."""
    paired = pair_members(members(*names))
    assert len(paired.problems) == 1
    assert message in paired.problems[0]
    assert [sample.key for sample in paired.samples] == (["k", "l"] if "twice" in message else [])


def test_keys_of_unclear_samples_are_told_too() -> None:
    assert pair_members(members("a.jpg", "b.jpg", "b.png")).keys == ("a", "b")
