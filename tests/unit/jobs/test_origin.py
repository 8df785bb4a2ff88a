from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from segfleet.spec.kinds import TrainSpec
from segfleet.spec.resolve import resolve_spec
from segfleet_jobs.origin import training_tags
from segfleet_jobs.version import code_version
from segfleet_models.encoder import weights_licence

REVISION = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    save_file({"a": torch.zeros(3, 4), "b": torch.zeros(5)}, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def spec(**model: Any) -> TrainSpec:
    document = {"kind": "train", "name": "tiny", "data": {"shards": "/d"}, "model": model}
    found = resolve_spec(document)
    assert isinstance(found, TrainSpec)
    return found


def test_a_version_tells_spec_size_base_and_licences(weights: Path) -> None:
    tags = training_tags(spec(backbone="vit_small_patch16_384", patch_size=16, decoder="mask"), weights)
    assert (tags["segfleet.parameters"], tags["segfleet.bytes"]) == ("17", str(weights.stat().st_size))
    assert json.loads(tags["segfleet.spec"])["model"]["patch_size"] == 16
    assert tags["segfleet.base"] == "vit_small_patch16_384 of timm"
    assert (tags["segfleet.licence.data"], tags["segfleet.licence.weights"]) == ("unknown", "apache-2.0")
    assert all(len(text) <= 8000 for text in tags.values())


@pytest.mark.parametrize(
    ("pretrained", "base", "licence"),
    [(False, "random", "none, it began with random weights"), ("/w/mine.pth", "file mine.pth", "unknown")],
)
def test_other_beginnings(weights: Path, pretrained: Any, base: str, licence: str) -> None:
    tags = training_tags(spec(pretrained=pretrained), weights)
    assert (tags["segfleet.base"], tags["segfleet.licence.weights"]) == (base, licence)


def test_a_licence_that_nobody_says_is_none() -> None:
    assert weights_licence("no_such_backbone") is None


@pytest.mark.parametrize("kind", ["vcs", "branch", "packed", "detached", "archive", "none"])
def test_the_code_version_holds_the_revision_where_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    git = tmp_path / ".git"
    (git / "refs" / "heads").mkdir(parents=True)
    (git / "HEAD").write_text(f"{REVISION}\n" if kind == "detached" else "ref: refs/heads/main\n")
    if kind == "branch":
        (git / "refs" / "heads" / "main").write_text(f"{REVISION}\n")
    (git / "packed-refs").write_text(f"# pack-refs\n{REVISION} refs/heads/main\n" if kind == "packed" else "")
    origin: dict[str, Any] = {"url": tmp_path.as_uri(), "dir_info": {"editable": True}}
    if kind == "vcs":
        origin = {"url": "https://host.invalid/x", "vcs_info": {"vcs": "git", "commit_id": REVISION}}
    elif kind == "archive":
        origin = {"url": "https://host.invalid/x.whl", "archive_info": {}}
    text = None if kind == "none" else json.dumps(origin)
    installed = SimpleNamespace(read_text=lambda _: text, version="1.2")
    monkeypatch.setattr(metadata, "distribution", lambda _: installed)
    has = kind in ("vcs", "branch", "packed", "detached")
    assert code_version() == "1.2" + (f"+git.{REVISION[:12]}" if has else "")
