"""Which members of a shard made elsewhere are a sample: by WebDataset's key rule, and never by guessing."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby

from segfleet_pipelines.tar_walk import TarMember

IMAGE_NAMES = ("jpg", "jpeg", "image.jpg", "image.jpeg", "image.png")
MASK_NAMES = ("mask.png", "seg.png", "mask.npy.zst", "npy.zst")
# A picture beside a mask of one of the names above, the mask beside any other picture.
_EITHER = "png"
# Notes that other programs keep beside a sample: text, passed over and never opened.
_NOTES = ("json", "txt", "cls", "id")
_PICKLES = ("pkl", "pickle", "pyd", "pth", "pt")
_MAX_KEY = 200


@dataclass(frozen=True, slots=True)
class TarSample:
    """A picture and its mask in a tar file.

    Attributes:
        key: Text before the first dot of both names.
        image: JPEG or PNG.
        mask: PNG, or NumPy array under zstd.
    """

    key: str
    image: TarMember
    mask: TarMember

    def rest(self, member: TarMember) -> str:
        """What follows the key and its dot in a member's name."""
        return member.name[len(self.key) + 1 :]


@dataclass(frozen=True, slots=True)
class Paired:
    """What the members of a shard make up.

    Attributes:
        samples: Those that are clear, in order.
        keys: All keys, also of samples that are not clear.
        problems: A line for each of the others, without the shard's name.
    """

    samples: tuple[TarSample, ...]
    keys: tuple[str, ...]
    problems: tuple[str, ...]


def pair_members(members: Iterable[TarMember]) -> Paired:
    """Group the members of a shard into samples; neighbours of one key belong together, as for WebDataset."""
    samples: list[TarSample] = []
    problems: list[str] = []
    keys: dict[str, None] = {}
    for key, group in groupby(members, lambda member: split_name(member.name)[0]):
        found = list(group)
        if wrong := _key_problem(key, found[0].name):
            problems.append(wrong)
            continue
        if key in keys:
            problems.append(f"key {key!r} comes twice, with other samples between; give each sample a key of its own")
            continue
        keys[key] = None
        sample = _sample(key, found)
        if isinstance(sample, TarSample):
            samples.append(sample)
        else:
            problems.append(f"key {key!r}: {sample}")
    return Paired(tuple(samples), tuple(keys), tuple(problems))


def split_name(name: str) -> tuple[str, str]:
    """Key and rest of a member's name; WebDataset keeps folders in the key and cuts at the file name's first dot."""
    folder, slash, base = name.rpartition("/")
    key, _, rest = base.partition(".")
    return folder + slash + key, rest


def is_note(name: str) -> bool:
    """Whether a member of that name may lie in a shard without being read."""
    return split_name(name)[1].lower().rpartition(".")[2] in _NOTES


def _key_problem(key: str, name: str) -> str:
    if "/" in key or "\\" in key:
        return f"member {name!r} lies in a folder, which would be part of its key; pack the files without folders"
    if not key or not key.isprintable() or len(key) > _MAX_KEY:
        return f"member {name!r} has no usable key before its first dot; rename it"
    return ""


def _sample(key: str, members: list[TarMember]) -> TarSample | str:
    """The sample of the members of one key, or why they are none."""
    parts: dict[str, TarMember] = {}
    for member in members:
        rest = split_name(member.name)[1].lower()
        if set(rest.split(".")) & set(_PICKLES):
            return f"{member.name!r} is a pickle, which can run code when it is read; take it out"
        if rest in parts:
            return f"two members {member.name!r}"
        if rest not in (*IMAGE_NAMES, *MASK_NAMES, _EITHER) and not is_note(member.name):
            return f"{member.name!r} is no picture, mask or note; take it out"
        parts[rest] = member
    images = [parts[name] for name in IMAGE_NAMES if name in parts]
    masks = [parts[name] for name in MASK_NAMES if name in parts]
    if _EITHER in parts:
        # Neither or both of the others: which one it is would be a guess, and it is then the one too many below.
        (images if masks and not images else masks).append(parts[_EITHER])
    for found, what in ((images, "picture"), (masks, "mask")):
        if len(found) != 1:
            names = ", ".join(member.name for member in found or members)
            return f"{len(found) or 'no'} {what}{'s' * (len(found) > 1)} among {names}"
    return TarSample(key, images[0], masks[0])
