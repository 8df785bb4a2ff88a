"""The model card: what a pulled version says of itself to people, in Markdown, with its pictures beside it."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

PICTURES = "pictures"
CARD = "README.md"
_CONFUSION = "confusion.json"
# A matrix of more classes is no picture any more.
_MOST_CLASSES = 60
_CELL, _MARGIN = 22, 150
_FIGURE = re.compile(r"eval/(?P<data>[^/]+)/(?P<protocol>[^/]+)/(?P<name>.+)")
_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>()#+!|~&])")
_HIDDEN = "segfleet.spec"

_LOAD = """\
## How to load it

With MLflow, in an environment that has what `requirements.txt` names and nothing else:

    import mlflow
    model = mlflow.pyfunc.load_model("{folder}")
    label_maps = model.predict(pictures)  # one (H, W, 3) uint8 RGB picture, a batch (N, H, W, 3), or a list

With segfleet: `segfleet predict --model {folder} IMAGE... --out DIR`.

With PyTorch alone, `artifacts/model.safetensors` and `artifacts/config.json` are the whole model, and
`code/segfleet_models` is its code:

    import sys; sys.path.insert(0, "{folder}/code")
    from pathlib import Path
    from segfleet_models.stored_model import load_stored
    model = load_stored(Path("{folder}/artifacts/config.json"), Path("{folder}/artifacts/model.safetensors")).model
"""


def write_card(folder: Path, version: Mapping[str, Any]) -> None:
    """Write README.md into the folder of a version's files, and draw the confusion matrix that may lie there.

    Args:
        folder: With MLmodel and, if there are any, PICTURES below it.
        version: As the registry describes it.
    """
    drawn = folder / PICTURES / _CONFUSION
    if drawn.is_file():
        picture = _read_confusion(drawn)
        if picture:
            drawn.with_suffix(".svg").write_text(picture, encoding="utf-8", errors="replace")
    config = _document(folder / "artifacts" / "config.json")
    pictures = sorted(path.name for path in (folder / PICTURES).glob("*") if path.suffix in (".png", ".svg"))
    (folder / CARD).write_text(model_card(version, config, pictures), encoding="utf-8", errors="replace")


def model_card(version: Mapping[str, Any], config: Mapping[str, Any], pictures: Sequence[str]) -> str:
    """The card's text.

    Args:
        version: As the registry describes it.
        config: The model's configuration; empty if it is none of this project's.
        pictures: Names of files in PICTURES.
    """
    title = f"{version['name']}/{version['version']}"
    aliases = ", ".join(f"@{alias}" for alias in version["aliases"])
    parts = [f"# {_plain(title)}{f' ({aliases})' if aliases else ''}", _model_text(config)]
    parts += [_figures_text(version["metrics"]), _classes_text(config)]
    if pictures:
        shown = "\n".join(f"![{_plain(name)}]({PICTURES}/{quote(name, errors='replace')})" for name in pictures)
        parts.append(f"## Pictures\n\n{shown}")
    parts += [_LOAD.format(folder="FOLDER").rstrip(), _origin_text(version)]
    return "\n\n".join(part for part in parts if part) + "\n"


def confusion_svg(names: Sequence[str], matrix: Sequence[Sequence[float]]) -> str:
    """A confusion matrix as a picture: rows are the truth, each shaded by its share of the row.

    Args:
        names: Of the K classes.
        matrix: Pixels, (K, K).
    """
    side = _MARGIN + _CELL * len(names)
    cells, texts = [], []
    for i, (name, row) in enumerate(zip(names, matrix, strict=True)):
        total, at = sum(row), _MARGIN + _CELL * i
        label = html.escape(name[:20])
        texts.append(f'<text x="{_MARGIN - 6}" y="{at + 15}" text-anchor="end">{label}</text>')
        texts.append(f'<text transform="translate({at + 15} {_MARGIN - 6}) rotate(-90)">{label}</text>')
        for j, count in enumerate(row):
            share = count / total if total else 0.0
            tone = round(255 * (1 - share))
            tip = f"{html.escape(name)} as {html.escape(names[j])}: {share:.1%}"
            x = _MARGIN + _CELL * j
            cells.append(
                f'<rect x="{x}" y="{at}" width="{_CELL}" height="{_CELL}" fill="rgb({tone},{tone},255)">'
                f"<title>{tip}</title></rect>"
            )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{side}" height="{side}" font-family="sans-serif" '
        f'font-size="12"><rect width="100%" height="100%" fill="white"/>{"".join(texts)}{"".join(cells)}</svg>\n'
    )


def _read_confusion(path: Path) -> str:
    document = _document(path)
    names, matrix = document.get("class_names"), document.get("matrix")
    try:
        if not isinstance(names, list) or not isinstance(matrix, list) or len(names) > _MOST_CLASSES:
            return ""
        return confusion_svg([str(name) for name in names], [[float(count) for count in row] for row in matrix])
    except (TypeError, ValueError, IndexError, OverflowError):
        return ""


def _model_text(config: Mapping[str, Any]) -> str:
    model, window = config.get("model"), config.get("window")
    if not isinstance(model, Mapping) or not isinstance(window, Mapping):
        return "A model that was not made by segfleet."
    said = {name: _plain(str(value)) for name, value in {**model, **window}.items()}
    size = f", patches of {said['patch_size']} pixels" if model.get("patch_size") else ""
    return (
        f"Semantic segmentation, {said.get('arch', 'segmenter')}: backbone {said.get('backbone')}{size}, "
        f"{said.get('decoder')} decoder, {said.get('num_classes')} classes. Takes RGB pictures of any size, and "
        f"labels them in windows of {said.get('window')} pixels every {said.get('stride')}."
    )


def _figures_text(metrics: Mapping[str, float]) -> str:
    if not metrics:
        return ""
    lines = ["## Figures", "", "| dataset, split, content | protocol | figure | value |", "|---|---|---|---|"]
    for name, value in sorted(metrics.items()):
        match = _FIGURE.fullmatch(name)
        cells = (match["data"], match["protocol"], match["name"]) if match else ("validation of the training", "", name)
        lines.append(f"| {' | '.join(_plain(cell) for cell in cells)} | {value:.4g} |")
    return "\n".join(lines)


def _classes_text(config: Mapping[str, Any]) -> str:
    names, palette = config.get("class_names"), config.get("palette")
    if not isinstance(names, list) or not isinstance(palette, list):
        return ""
    lines = ["## Classes", "", "| label | class | colour |", "|---|---|---|"]
    colours = [colour if isinstance(colour, list) else [colour] for colour in palette]
    for i, (name, colour) in enumerate(zip(names, colours, strict=False)):
        lines.append(f"| {i} | {_plain(str(name))} | {_plain(', '.join(map(str, colour)))} |")
    return "\n".join(lines)


def _origin_text(version: Mapping[str, Any]) -> str:
    tags = {name: text for name, text in version["tags"].items() if name != _HIDDEN}
    origin = {"job": version["job"], "MLflow run": version["run_id"], **tags}
    for what in ("data", "weights"):
        origin.setdefault(f"segfleet.licence.{what}", "unknown")
    lines = [
        f"- {_plain(name.removeprefix('segfleet.'))}: {_plain(str(text))}" for name, text in origin.items() if text
    ]
    return "\n".join(["## Where it comes from", "", *lines])


def _plain(text: str) -> str:
    """Text from elsewhere that Markdown shows as it is, in one line."""
    return _MARKDOWN.sub(r"\\\1", " ".join("".join(c if c.isprintable() else " " for c in text).split()))


def _document(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}
