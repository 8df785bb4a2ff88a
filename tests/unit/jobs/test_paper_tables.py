"""The paper's tables with our runs in them: every figure has its place, and nothing is filled in or set side by side
that is not the same."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from searches import search_job, trial_document
from segfleet.spec.document import apply_overlay, read_document
from segfleet.spec.recipes import variant_fields
from segfleet_jobs import report
from segfleet_jobs.paper import Entry, PaperTable, paper_document, paper_tables
from segfleet_jobs.paper_table import Data, Run, differences, entry_of, fill, tables_of
from segfleet_jobs.report_page import as_text
from segfleet_jobs.search_report import write_search_report
from segfleet_jobs.search_sections import COLUMNS, paper_section

ADE = Data("ade20k", 2000)
SPECS = Path(__file__).parents[3] / "jobs" / "specs" / "paper"
TABLES = {table.place: table for table in paper_tables()}
# Rows and figures of each table, counted in the paper.
SIZES = {
    "table 2": (9, 9),
    "table 3": (8, 24),
    "table 4": (10, 40),
    "table 5": (5, 5),
    "table 6": (14, 31),
    "table 7": (15, 15),
    "table 8": (14, 14),
    "figure 4": (11, 22),
}


def entry(place: str, model: str) -> Entry:
    (found,) = [entry for entry in TABLES[place].entries if entry.model == model]
    return found


def run(place: str, model: str, miou: float = 0.5, **changes: Any) -> Run:
    spec = copy.deepcopy(entry(place, model).training())
    for path, value in changes.items():
        section, name = path.split("__")
        spec[section][name] = value
    return Run("trial 1", spec, {"miou": miou}, ADE)


def test_every_figure_of_the_paper_is_in_the_file() -> None:
    assert {place: (len(t.entries), sum(len(e.figures) for e in t.entries)) for place, t in TABLES.items()} == SIZES
    for table in TABLES.values():
        assert set(table.columns) <= set(COLUMNS)
        assert {name for entry in table.entries for name in entry.figures} == set(table.columns)
        assert len({entry.model for entry in table.entries}) == len(table.entries)
        for row in paper_document()["tables"][table.place]["rows"]:
            assert set(row) <= {"model", "variant", "set", *table.columns}
            if "variant" in row:
                variant_fields(row["variant"])


def test_what_the_paper_says_twice_is_the_same_here() -> None:
    def single(place: str) -> dict[str, float]:
        return {entry.model: entry.figures["single"] for entry in TABLES[place].entries if "single" in entry.figures}

    assert {single("table 2")["dropout 0.0, stochastic depth 0.1"], single("table 3")["Seg-S/16"]} == {45.37}
    assert single("table 5")["20k"] == 45.37
    for model in ("Seg-B/32", "Seg-B/16", "Seg-B/8", "Seg-L/16"):
        assert single("table 3")[model] == single("table 4")[model]
    # As printed: the paper itself has two figures for it.
    assert (single("table 3")["Seg-B†/16"], single("table 4")["Seg-B†/16"], single("table 6")["Seg-B†/16"]) == (
        47.08,
        47.10,
        47.08,
    )
    for row in TABLES["table 4"].entries:
        # The paper's three groups are of equal size: their mean is the mIoU, to rounding.
        groups = [row.figures[size] for size in ("small", "medium", "large")]
        assert sum(groups) / 3 == pytest.approx(row.figures["single"], abs=0.011)


@pytest.mark.parametrize("table", TABLES.values(), ids=lambda table: table.place)
def test_every_figure_has_its_place_in_the_printed_table(table: PaperTable) -> None:
    section = paper_section(table.place, table.title, fill(table, []))
    head, rows = section.tables[0].head, section.tables[0].rows
    for row, one in zip(rows, table.entries, strict=True):
        assert len(row) == len(head)
        cells = dict(zip(head, row, strict=True))
        for name, value in one.figures.items():
            assert float(cells[f"{COLUMNS[name]}, paper"]) == value
            assert cells.get(f"{COLUMNS[name]}, ours", "missing") == "missing"
        assert row[-1] == "-"
        assert not any(cell.startswith(("+0", "-0")) for cell in row)


def test_a_run_like_the_paper_s_is_compared() -> None:
    rows = fill(TABLES["table 3"], [run("table 3", "Seg-S/16", 0.4512)])
    (row,) = [row for row in rows if row.run]
    assert (row.entry.model, row.ours["single"], row.differs) == ("Seg-S/16", pytest.approx(45.12), ())
    assert row.difference == {"single": pytest.approx(-0.25)}
    assert [other.missing for other in rows if other is not row] == ["missing"] * 7


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"train__steps": 8000}, "train.steps is 8,000, not 160,000"),
        ({"train__global_batch": 16}, "train.global_batch is 16, not 8"),
        ({"train__ema": 0.999}, "train.ema is 0.999, not None"),
        ({"optim__lr": 0.01}, "optim.lr is 0.01, not 0.001"),
        ({"augment__photometric": False}, "augment.photometric is False, not True"),
        ({"loss__label_smoothing": 0.1}, "loss.label_smoothing is 0.1, not 0.0"),
        ({"model__pretrained": False}, "model.pretrained is false"),
        ({"eval__stride": 512}, "eval.stride is 512, not 480"),
        ({"eval__scales": [1.0, 1.5]}, "eval.scales are neither one nor the paper's six with flip"),
    ],
)
def test_a_run_that_differs_is_shown_and_not_compared(changes: dict[str, Any], text: str) -> None:
    other = run("table 3", "Seg-S/16", **changes)
    (row,) = [row for row in fill(TABLES["table 3"], [other]) if row.run]
    assert row.differs == (text,)
    assert row.difference == {}
    cells = paper_section("table 3", "", [row]).tables[0].rows[0]
    assert "not comparable" in cells or "missing" in cells


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (None, "the dataset cannot be looked at"),
        (Data("camvid", 101), "the dataset is camvid, not ade20k"),
        (Data("ade20k", 26), "scored on 26 pictures, not 2,000"),
    ],
)
def test_other_pictures_are_not_compared(data: Data | None, text: str) -> None:
    assert differences(entry("table 3", "Seg-S/16"), run("table 3", "Seg-S/16").spec, data) == (text,)


@pytest.mark.parametrize(
    "changes",
    [
        {"model__dropout": 0.3},
        {"model__decoder": "mask"},
        {"model__patch_size": 14},
        {"model__backbone": "vit_small_patch14_dinov2"},
        {"data__share": 0.5},
    ],
)
def test_another_network_or_share_has_no_row(changes: dict[str, Any]) -> None:
    spec = run("table 3", "Seg-S/16", **changes).spec
    assert all(entry_of(table, spec) is None for table in TABLES.values() if table.place != "figure 4")
    assert entry_of(TABLES["table 3"], {**run("table 3", "Seg-S/16").spec, "recipe": "none"}) is None


def test_one_training_alone_is_no_table() -> None:
    one, other = run("table 3", "Seg-S/16").spec, run("table 3", "Seg-B/8").spec
    assert tables_of([]) == ()
    assert tables_of([one, one]) == ()
    assert [table.place for table in tables_of([one, other])] == ["table 3"]


def test_several_scales_stand_in_their_own_column() -> None:
    scales = [0.5, 0.75, 1.0, 1.25, 1.5, 1.75]
    both = run("table 6", "Seg-L/16", 0.52, eval__scales=scales, eval__flip=True)
    (row,) = [row for row in fill(TABLES["table 6"], [both]) if row.run]
    assert row.ours == {"multi": pytest.approx(52.0)}
    assert row.difference == {"multi": pytest.approx(-0.25)}


def test_of_two_runs_in_a_row_the_one_like_the_paper_s_is_shown() -> None:
    fast, whole = run("table 3", "Seg-S/16", 0.6, train__steps=10), run("table 3", "Seg-S/16", 0.4)
    lost = Run("trial 3", whole.spec, {}, ADE, "missing: failed")
    for runs in ([fast, whole, lost], [lost, whole, fast]):
        (row,) = [row for row in fill(TABLES["table 3"], runs) if row.run]
        assert row.run is whole
    (row,) = [row for row in fill(TABLES["table 3"], [lost]) if row.run]
    assert (row.missing, row.ours) == ("missing: failed", {})


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    """The report of table 2 at toy size: seven trials, one of which has failed."""
    spec = apply_overlay(read_document(SPECS / "table2.yaml"), read_document(SPECS / "tiny.yaml"))
    pairs = [(dropout, depth) for dropout in (0.0, 0.1, 0.2) for depth in (0.0, 0.1, 0.2)][:7]
    trials = [
        trial_document(i, {"model.dropout": p[0], "model.drop_path": p[1]}, 0.01 * i)
        for i, p in enumerate(pairs, start=1)
    ]
    trials[3] |= {"state": "failed", "why": "out of memory"}
    found = {"trials": trials, "metric": "val/miou", "mode": "max"}
    out = tmp_path_factory.mktemp("report")
    document, page = write_search_report(search_job(spec), found, None, out, lambda _: None)  # type: ignore[arg-type]
    beside = page.sections[0]
    return document, "\n".join([beside.title, *as_text(beside.tables[0]), beside.text])


def test_a_toy_run_of_a_table_says_that_it_is_none(tiny: tuple[dict[str, Any], str]) -> None:
    document, text = tiny
    (table,) = document["paper"]
    assert table["place"] == "table 2"
    assert [row["run"] for row in table["rows"]] == [f"trial {i}" for i in range(1, 8)] + [None, None]
    assert [row["missing"] for row in table["rows"]][3:] == ["missing: failed", "", "", "", "missing", "missing"]
    assert all(row["difference"] == {} for row in table["rows"])
    assert text.startswith("Beside the paper: table 2, dropout and stochastic depth, Seg-S/16\n")
    assert text.count("not comparable") == 6
    assert text.count("missing") == 3
    assert "Not comparable with the paper: in all of these trainings" in text
    assert "train.steps is 6, not 160,000" in text
    assert "45.37" in text


def test_the_command_prints_the_table(
    tiny: tuple[dict[str, Any], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    spec = apply_overlay(read_document(SPECS / "table5.yaml"), read_document(SPECS / "tiny.yaml"))
    trials = [trial_document(i, {"data.share": share}, 0.1) for i, share in ((1, 0.2), (2, 1.0))]

    class FakeClient:
        def __enter__(self) -> FakeClient:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def job(self, _: str) -> dict[str, Any]:
            return search_job(spec)

        def status(self) -> dict[str, Any]:
            return {"mlflow": {"url": "http://127.0.0.1:9"}}

        def trials(self, _: str) -> dict[str, Any]:
            return {"trials": trials, "metric": "val/miou", "mode": "max"}

    monkeypatch.setattr(report, "Client", FakeClient)
    assert report.main(["job-aaaaaaaa", "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "Beside the paper: table 5" in out
    assert "38.31" in out
    assert report.main(["job-aaaaaaaa", "--picture", "x.png"]) == 2
    assert "a search shows no attention" in capsys.readouterr().err
