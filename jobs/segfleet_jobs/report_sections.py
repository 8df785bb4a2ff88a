"""The parts of a report's page, each from the material and with its pictures drawn."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from segfleet.errors import SpecError
from segfleet.spec.filling import leaves
from segfleet.spec.resolve import resolve_spec, to_document
from segfleet_jobs import charts
from segfleet_jobs.attention_picture import draw_attention
from segfleet_jobs.embedding_picture import draw_embeddings
from segfleet_jobs.paper import Scored, compare
from segfleet_jobs.report_material import Material
from segfleet_jobs.report_page import PagePicture, SectionOfPage, Table
from segfleet_jobs.split_scores import SIZES, most_confused
from segfleet_models.decoder import MaskTransformerDecoder
from segfleet_pipelines.picture import Pixels

Shown = tuple[str, Pixels, Pixels | None]  # a picture's name, its pixels and its truth, if that is known
_SHEET_CAPTION = "Picture, truth, prediction, errors in orange; ignored pixels are striped."


def curves_section(found: Material, out: Path) -> SectionOfPage:
    """Loss, mIoU, learning rate and speed over the steps."""
    title = "Curves"
    if not any(found.curves.values()):
        return SectionOfPage(title, missing=found.missing.get("MLflow's record", "the run has no curves"))
    path = out / "curves.png"
    charts.draw_curves(found.curves, found.result["baseline_miou"], path, found.result.get("best_step"))
    caption = "The dashed line is the mIoU of always answering the commonest class; the circle is the registered step."
    return SectionOfPage(title, pictures=[PagePicture(path, caption)])


def classes_section(found: Material, out: Path) -> SectionOfPage:
    """IoU of each class."""
    iou: Mapping[str, float | None] = found.result["iou"]
    path = out / "classes.png"
    charts.draw_classes(iou, path, found.palette)
    rows = [(name, "absent" if value is None else score(value)) for name, value in iou.items()]
    return SectionOfPage(
        "Classes",
        pictures=[PagePicture(path, "IoU of each class, the best first; the square is the class's colour.")],
        tables=[Table(("class", "IoU"), rows, title="IoU as a table", is_folded=True)],
    )


def confusion_section(found: Material, out: Path) -> SectionOfPage:
    """The confusion matrix, and the largest confusions as a table."""
    title = "Confusion"
    if found.confusion is None:
        return SectionOfPage(title, missing=found.missing.get("confusion", found.missing.get("MLflow's record", "")))
    path = out / "confusion.png"
    charts.draw_confusion(*most_confused(found.confusion, found.class_names), path)
    rows = [
        (truth, prediction, f"{share:.1%}", f"{of_errors:.1%}")
        for truth, prediction, share, of_errors in charts.largest_confusions(found.confusion, found.class_names)
    ]
    head = ("truth", "taken for", "share of the class", "share of all wrong pixels")
    caption = "Each row is a class of the truth; its cells add up to 100 %. The scale is a square root."
    return SectionOfPage(
        title, pictures=[PagePicture(path, caption)], tables=[Table(head, rows, title="The largest confusions")]
    )


def predictions_section(found: Material, out: Path) -> SectionOfPage:
    """The stored sheets: first, middle, best; or an evaluation's worst pictures."""
    title = "Predictions"
    if not found.sheets:
        why = found.missing.get("prediction sheets", found.missing.get("MLflow's record", ""))
        return SectionOfPage(title, missing=why)
    pictures = []
    # The best first: the others show the way there.
    for step, source in reversed(found.sheets):
        path = out / (f"predictions-{step}.png" if step is not None else f"predictions-{source.stem}.png")
        shutil.copyfile(source, path)
        pictures.append(PagePicture(path, (f"Step {step}. " if step is not None else "") + _SHEET_CAPTION))
    return SectionOfPage(title, pictures=pictures)


def attention_section(found: Material, out: Path, pictures: Sequence[Shown]) -> SectionOfPage:
    """Where patches and classes look, on some pictures."""
    title = "Attention"
    text = (
        "A map shows how much one patch (white frame) or one class embedding attends to every patch, the mean over the "
        "heads: yellow much, dark blue little, each map over its own range. The patches lie in the largest classes."
    )
    if found.model is None:
        return SectionOfPage(title, missing=found.missing["model"])
    if not pictures:
        return SectionOfPage(title, missing=found.missing.get("pictures of the dataset", "no picture was given"))
    done = []
    with found.part("attention"):
        for number, (name, image, truth) in enumerate(pictures, start=1):
            path = out / f"attention-{number}.png"
            draw_attention(found.model.stored, image, path, truth=truth, title=name)
            done.append(PagePicture(path, f"Attention on {name}."))
    return SectionOfPage(title, text, done, missing=found.missing.get("attention", ""))


def embeddings_section(found: Material, out: Path) -> SectionOfPage:
    """The class embeddings of a mask decoder by their main singular directions."""
    title = "Class embeddings"
    if found.model is None:
        return SectionOfPage(title, missing=found.missing["model"])
    stored = found.model.stored
    decoder = getattr(stored.model, "decoder", None)  # a baseline of another library has none of ours
    if not isinstance(decoder, MaskTransformerDecoder):
        return SectionOfPage(title, missing="only the mask transformer has class embeddings")
    path = out / "embeddings.png"
    embeddings = decoder.cls_emb[0].detach().cpu().numpy()
    left_out = draw_embeddings(embeddings, stored.class_names, stored.palette, path)
    text = (
        "The learned embedding of each class, reduced to the two main directions of a singular value decomposition "
        "(centred on their mean, not scaled). Classes that stand together are alike to the decoder's input."
    )
    caption = "Class embeddings" + (f"; {left_out} names found no room." if left_out else ".")
    return SectionOfPage(title, text, [PagePicture(path, caption)])


def time_section(found: Material, out: Path) -> SectionOfPage:
    """Where the seconds went: of rank 0 since its last start, and of the job with all its attempts."""
    seconds = found.result["seconds"]
    path = out / "time.png"
    charts.draw_time(seconds, path)
    pictures = [PagePicture(path, "Seconds of rank 0 in each part of the work, since the last start of its group.")]
    goodput = found.job.get("goodput")
    if not goodput or not goodput["wall_s"]:
        return SectionOfPage("Time", pictures=pictures)
    rows = [(part, f"{value:.1f}", f"{value / goodput['wall_s']:.1%}") for part, value in goodput["seconds"].items()]
    rows.append(("all", f"{goodput['wall_s']:.1f}", "100.0%"))
    title = f"The job's time from its first start to its end; goodput {goodput['share'] or 0.0:.1%}"
    return SectionOfPage("Time", pictures=pictures, tables=[Table(("part", "seconds", "share"), rows, title=title)])


def sizes_section(found: Material) -> SectionOfPage:
    """What an evaluation scores beyond a training: the mIoU of small, medium and large classes, and of boundaries."""
    result = found.result
    groups = [(size, score(result[f"miou_{size}"]), ", ".join(result["size_groups"][size])) for size in SIZES]
    near = [(name, score(value)) for name, value in result["boundary_iou"].items()]
    text = (
        f"Classes in three groups of equal number by their mean size in a picture of split {result['sizes_from']!r}; "
        f"the boundary mIoU, of pixels near a boundary alone, is {score(result['boundary_miou'])}."
    )
    tables = [
        Table(("classes", "mIoU", "which"), groups),
        Table(("class", "boundary IoU"), near, title="Boundary IoU of each class", is_folded=True),
    ]
    return SectionOfPage("Sizes and boundaries", text, tables=tables)


def paper_section(found: Material) -> SectionOfPage:
    """The result beside the paper's figures, if they are of the same thing."""
    title = "Beside the paper"
    scored = scored_as(found)
    if isinstance(scored, str):
        return SectionOfPage(title, missing=scored)
    rows, reason = compare(scored)
    if not rows:
        return SectionOfPage(title, missing=reason)
    cells = [
        (row.table, row.variant, row.scales, f"{row.ours:.2f}", f"{row.paper:.2f}", f"{row.difference:+.2f}")
        for row in rows
    ]
    head = ("paper", "model", "scales", "ours", "the paper's", "difference")
    return SectionOfPage(title, "mIoU in per cent.", tables=[Table(head, cells)])


def scored_as(found: Material) -> Scored | str:
    """What was scored and how, or why that cannot be said."""
    spec, result = found.job["spec"], found.result
    window: Mapping[str, Any] | None = spec.get("eval")
    if found.job["kind"] == "train":
        model, crop, share = spec["model"], spec["train"]["crop"], spec["data"].get("share", 1.0)
    elif found.model is not None:
        config = found.model.stored.config.to_dict()
        model, crop, share = {"arch": "segmenter", **config}, config["img_size"], 1.0
        window = window or found.model.stored.document["window"]
    else:
        return found.missing.get("model", "the model is not known")
    dataset = found.dataset
    if window is None or not dataset or found.result["miou"] is None:
        return "nothing tells what was scored and how"
    scales, flip = window["scales"], window["flip"]
    return Scored(dataset, result["num_samples"], model, crop, scales, flip, result["miou"], share)


def spec_section(found: Material) -> SectionOfPage:
    """The resolved spec; what differs from the recipe's defaults stands out."""
    spec = leaves(found.job["spec"])
    defaults = leaves(default_spec(found.job["spec"]))
    rows = [(name, _plain(value), _plain(defaults.get(name, ""))) for name, value in spec.items()]
    marked = frozenset(i for i, (name, *_) in enumerate(rows) if name not in defaults or spec[name] != defaults[name])
    table = Table(
        ("field", "value", "default"), rows, "The whole spec; marked: not the default", marked, is_folded=True
    )
    changed = Table(("field", "value", "default"), [row for i, row in enumerate(rows) if i in marked])
    return SectionOfPage("Spec", "What differs from the defaults of the kind and the recipe.", tables=[changed, table])


def default_spec(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The spec of the same kind, recipe and variant with nothing else said; empty if this version knows no such."""
    document = {"kind": spec["kind"], "name": spec["name"], "data": {"shards": spec["data"]["shards"]}}
    if spec["kind"] == "train":
        variant = spec["model"].get("variant")
        document |= {"recipe": spec["recipe"], **({"model": {"variant": variant}} if variant else {})}
    else:
        document["model"] = spec["model"]
    try:
        return to_document(resolve_spec(document))
    except SpecError:
        return {}


def score(value: float | None) -> str:
    """A share as text; none if no class occurs."""
    return "-" if value is None else f"{value:.4f}"


def _plain(value: object) -> str:
    return "-" if value is None else str(value)
