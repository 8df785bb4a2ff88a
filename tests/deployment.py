"""What `docker/` describes, read and held against the schemas of those who read it."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft7Validator, Draft202012Validator

ROOT = Path(__file__).resolve().parents[1]
DOCKER = ROOT / "docker"
KUBERNETES = DOCKER / "kubernetes"
SCHEMAS = ROOT / "tests" / "data" / "schemas"
Document = dict[str, Any]


def compose(env: Mapping[str, str]) -> Document:
    """The compose file with its variables filled in: ${NAME}, ${NAME:-default} and ${NAME:?message}."""

    def fill(match: re.Match[str]) -> str:
        name, kind, rest = match[1], match[2], match[3]
        if env.get(name):
            return env[name]
        assert kind == ":-", f"{name} has neither value nor default"
        return rest

    text = (DOCKER / "compose.yaml").read_text(encoding="utf-8")
    found = yaml.safe_load(re.sub(r"\$\{(\w+)(:[-?])?([^}]*)\}", fill, text))
    assert isinstance(found, dict)
    return found


def manifests() -> list[tuple[str, Document]]:
    """Every object of docker/kubernetes, with the file it stands in; those for kustomize alone left out."""
    files = sorted(KUBERNETES.glob("*.yaml"))
    found = [(f.name, one) for f in files for one in yaml.safe_load_all(f.read_text(encoding="utf-8")) if one]
    return [(name, one) for name, one in found if one["kind"] != "Kustomization"]


def manifest(kind: str, name: str | None = None) -> Document:
    """The one object of a kind, and a name if there are more."""
    [found] = [m for _, m in manifests() if m["kind"] == kind and name in (None, m["metadata"]["name"])]
    return found


def settings_file() -> dict[str, str]:
    """The settings of the service on Kubernetes."""
    lines = (KUBERNETES / "settings.env").read_text(encoding="utf-8").splitlines()
    return dict(line.partition("=")[::2] for line in lines if line and not line.startswith("#"))


def compose_faults(document: Document) -> list[str]:
    """What compose would not accept."""
    return _faults(Draft7Validator(_schema("compose")), document)


def kube_faults(document: object, kind: str) -> list[str]:
    """What the API server would not accept; a field that it does not know is none to it, as with `kubectl apply`."""
    source = "kueue" if kind in ("ClusterQueue", "LocalQueue", "ResourceFlavor") else "ray"
    return _faults(Draft202012Validator(_strict(_schema(source)) | {"$ref": f"#/$defs/{kind}"}), document)


@functools.cache
def _schema(name: str) -> Any:
    return json.loads((SCHEMAS / f"{name}.json").read_text(encoding="utf-8"))


def _faults(validator: Draft7Validator | Draft202012Validator, document: object) -> list[str]:
    return [f"{'/'.join(map(str, e.absolute_path))}: {e.message}"[:300] for e in validator.iter_errors(document)]


def _strict(node: Any, *, is_schema: bool = True) -> Any:
    """A schema that allows no more properties than it names."""
    if isinstance(node, list):
        return [_strict(item) for item in node]
    if not isinstance(node, dict):
        return node
    # The keys of these are names, not words of the schema's language.
    copy = {k: _strict(v, is_schema=not (is_schema and k in ("properties", "$defs"))) for k, v in node.items()}
    if is_schema and "properties" in copy:
        copy.setdefault("additionalProperties", False)
    return copy
