"""What a model version says of its making: code, spec, weights it began with, size, licences."""

from __future__ import annotations

import json
import math
from importlib import metadata
from pathlib import Path
from urllib.parse import unquote, urlsplit

from safetensors import safe_open

from segfleet.spec.kinds import TrainSpec
from segfleet.spec.resolve import to_document
from segfleet_models.encoder import weights_licence

UNKNOWN = "unknown"
# What the service takes for one tag.
_LONGEST_TAG = 8000


def code_version() -> str:
    """The package's version and, where it was installed from a git repository, the revision.

    Changes that were never committed are not seen.
    """
    version, revision = metadata.version("segfleet"), _revision()
    return f"{version}+git.{revision[:12]}" if revision else version


def training_tags(spec: TrainSpec, weights: Path) -> dict[str, str]:
    """Tags of a version that a training has made.

    Nothing that is prepared here records under which licence its pictures are, so that is said to be unknown.

    Args:
        spec: Of the training.
        weights: The model.safetensors.
    """
    text = json.dumps(to_document(spec), sort_keys=True)
    base, licence = _base(spec)
    tags = {
        "segfleet.code_version": code_version(),
        "segfleet.base": base,
        "segfleet.licence.data": UNKNOWN,
        "segfleet.licence.weights": licence,
        **size_tags(weights),
    }
    return {**tags, "segfleet.spec": text} if len(text) <= _LONGEST_TAG else tags


def size_tags(weights: Path) -> dict[str, str]:
    """Number of values in a model.safetensors, and its bytes."""
    with safe_open(weights, "pt") as file:
        values = sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    return {"segfleet.parameters": str(values), "segfleet.bytes": str(weights.stat().st_size)}


def _base(spec: TrainSpec) -> tuple[str, str]:
    """What the training began with, and its licence."""
    pretrained = spec.model.pretrained
    if pretrained is False:
        return "random", "none, it began with random weights"
    if isinstance(pretrained, str):
        return f"file {Path(pretrained).name}", UNKNOWN
    return f"{spec.model.backbone} of timm", weights_licence(spec.model.backbone) or UNKNOWN


def _revision() -> str:
    """Commit of the repository that the package is installed from; empty if it was not."""
    try:
        origin = json.loads(metadata.distribution("segfleet").read_text("direct_url.json") or "{}")
        if "vcs_info" in origin:
            return str(origin["vcs_info"]["commit_id"])
        url = urlsplit(origin.get("url", ""))
        if url.scheme != "file" or not origin.get("dir_info", {}).get("editable"):
            return ""
        git = Path(unquote(url.path)) / ".git"
        head = (git / "HEAD").read_text(encoding="utf-8").strip()
        if not head.startswith("ref: "):
            return head
        name = head.removeprefix("ref: ")
        if (git / name).is_file():
            return (git / name).read_text(encoding="utf-8").strip()
        packed = (git / "packed-refs").read_text(encoding="utf-8").splitlines()
        return next((line.partition(" ")[0] for line in packed if line.endswith(f" {name}")), "")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return ""
