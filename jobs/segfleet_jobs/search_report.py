"""What a search has found, as one HTML page, its pictures and a JSON document; in any state, as far as it has come."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import mlflow

from segfleet_jobs import search_sections as parts
from segfleet_jobs.paper_table import Row, fill, tables_of
from segfleet_jobs.report_page import Page, SectionOfPage, render
from segfleet_jobs.search_importance import Importance, importance
from segfleet_jobs.search_material import SearchMaterial, gather_search

_HOUR = 3600.0
_Tables = Mapping[tuple[str, str], tuple[Row, ...]]  # by place and title


def write_search_report(
    job: Mapping[str, Any],
    trials: Mapping[str, Any],
    client: mlflow.MlflowClient,
    out: Path,
    say: Callable[[str], None],
) -> tuple[dict[str, Any], Page]:
    """Write report.html, report.json and the pictures.

    Args:
        job: A search as the service describes it, in any state.
        trials: Its trials, metric and mode, as the service sends them.
        client: Of the MLflow server that tracked it.
        out: Folder for the files, made if it is not there.
        say: Told of each step.

    Returns:
        The content of report.json, and the page.

    Raises:
        ServiceError: the spec of the job is none that this version knows.
        OSError: the folder cannot be written to.
    """
    found = gather_search(job, trials, client, say)
    out.mkdir(parents=True, exist_ok=True)
    values, validation = found.values_in_common()
    told = importance(found.shown, values)
    tables = {
        (table.place, table.title): fill(table, found.runs) for table in tables_of([run.spec for run in found.runs])
    }
    subtitle = f"search {job['id']}, {job['state']}"
    page = Page(str(job["name"]), subtitle, key_figures(found), _sections(found, told, validation, tables, out, say))
    say("writing the page")
    (out / "report.html").write_text(render(page), encoding="utf-8")
    document = _document(found, told, tables, page, out)
    text = json.dumps(document, indent=1, allow_nan=False)
    (out / "report.json").write_text(text, encoding="utf-8")
    return document, page


def key_figures(found: SearchMaterial) -> list[tuple[str, str]]:
    """Name and value of what a reader wants first."""
    states = Counter(trial["state"] for trial in found.trials)
    best = next((standing.trial for standing in found.standings if standing.places["value"] is not None), None)
    everything = (*found.trials, *([found.final] if found.final else []))
    hours = sum(trial["worker_seconds"] for trial in everything) / _HOUR
    result = found.job.get("result") or {}
    figures = [
        (f"best {found.metric}", "-" if best is None else f"{best['best_value']:.4f} at step {best['best_step']:,}"),
        ("best trial", "-" if best is None else found.name_of(best)),
        ("trials", ", ".join(f"{count} {state}" for state, count in states.items()) or "none yet"),
        ("steps of all", f"{sum(trial['step'] for trial in everything):,}"),
        ("worker-hours of all", f"{hours:.3g}"),
        ("chosen by", f"{found.spec.search.algorithm}, scheduler {found.spec.search.scheduler}"),
    ]
    if found.final is not None:
        value = found.final["best_value"]
        figures.append(("final training", found.final["state"] if value is None else f"{found.metric} {value:.4f}"))
    if result.get("model"):
        figures.append(("registered as", "{name}/{version} @{alias}".format(**result["model"])))
    return figures


def _sections(
    found: SearchMaterial, told: Importance, validation: int, tables: _Tables, out: Path, say: Callable[[str], None]
) -> list[SectionOfPage]:
    makers: dict[str, Callable[[], SectionOfPage]] = {
        "leaderboard": lambda: parts.leaderboard_section(found),
        "choices and values": lambda: parts.space_section(found, out),
        "learning curves": lambda: parts.learning_section(found, out),
        "importance": lambda: parts.importance_section(told, validation, out),
        "speed": lambda: parts.speed_section(found, out),
    }
    # A table of the paper is what such a search is for.
    sections = [parts.paper_section(*names, rows) for names, rows in tables.items()]
    for number, (name, make) in enumerate(makers.items(), start=1):
        say(f"{name} ({number} of {len(makers)})")
        sections.append(make())
    if not tables:
        why = "the trials are not all of one of the paper's tables"
        sections.append(SectionOfPage(parts.BESIDE, missing=why if found.runs else "no trial has begun yet"))
    return [*sections, parts.spec_section(found)]


def _document(found: SearchMaterial, told: Importance, tables: _Tables, page: Page, out: Path) -> dict[str, Any]:
    """report.json: everything on the page that is not a picture, and the files."""
    pictures = [picture.path for section in page.sections for picture in section.pictures]
    missing = {section.title: section.missing for section in page.sections if section.missing}
    return {
        "job": found.job["id"],
        "name": found.job["name"],
        "kind": "search",
        "state": found.job["state"],
        "metric": found.metric,
        "mode": found.mode,
        "result": found.job.get("result"),
        "figures": dict(page.figures),
        "leaderboard": [
            {**standing.trial, "places": dict(standing.places), "is_pareto": standing.is_pareto}
            for standing in found.standings
        ],
        "final": found.final,
        "importance": {"shares": told.shares, "explained": told.explained, "trials": told.num_trials, "why": told.why},
        "paper": [
            {"place": place, "title": title, "rows": [_row(row) for row in rows]}
            for (place, title), rows in tables.items()
        ],
        "missing": {**found.missing, **missing},
        "files": {
            "report": str(out / "report.html"),
            "document": str(out / "report.json"),
            **{path.stem: str(path) for path in pictures},
        },
    }


def _row(row: Row) -> dict[str, Any]:
    return {
        "model": row.entry.model,
        "paper": dict(row.entry.figures),
        "ours": dict(row.ours),
        "difference": row.difference,
        "differs": list(row.differs),
        "run": None if row.run is None else row.run.name,
        "missing": row.missing,
    }
