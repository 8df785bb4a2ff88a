"""How an evaluation is called, so that two of them never share a name unless they measured the same in the same way."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict

from segfleet_models.inference import WindowConfig
from segfleet_pipelines.manifest import Manifest

_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_.-]")
_LONGEST_NAME = 40


def protocol_label(window: WindowConfig, precision: str) -> str:
    """The protocol in a word, such as `reference-ms6-flip-1a2b3c4d`: single scale (ss) or many, flipped too or not.

    The last part is a digest of all settings; the same settings always have the same.

    Args:
        window: Windows, scales and flip.
        precision: What the model computes in.
    """
    scales = "ss" if window.scales == (1.0,) else f"ms{len(window.scales)}"
    settings = json.dumps({**asdict(window), "precision": precision}, sort_keys=True)
    digest = hashlib.sha256(settings.encode()).hexdigest()[:8]
    return "-".join([window.protocol, scales, *(["flip"] if window.flip else []), digest])


def figure_prefix(manifest: Manifest, split: str, label: str) -> str:
    """What the names of an evaluation's figures begin with: `eval/DATASET-SPLIT-CONTENT/PROTOCOL/`.

    Args:
        manifest: Of the dataset; CONTENT is the beginning of its content id.
        split: Its split.
        label: Of the protocol.
    """
    name = _NOT_IN_NAMES.sub("_", manifest.name)[:_LONGEST_NAME]
    return f"eval/{name}-{split}-{manifest.content_id[:12]}/{label}/"
