from __future__ import annotations

from pathlib import Path

import pytest

from segfleet.errors import DataError
from segfleet_jobs.prediction_inputs import Source, find_sources, refuse_overwriting, targets_of


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("b/street.JPG", "a/street.png", "a/deep/er/lake.tiff", "a/notes.txt", "top.webp"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path / "photos"


def places(*names: str, out: str = "out") -> list[str]:
    return [str(source.place) for source in find_sources(names, Path(out))]


def test_a_folder_means_all_pictures_below_it_in_their_layout(photos: Path) -> None:
    assert places("photos") == ["a/deep/er/lake.tiff", "a/street.png", "b/street.JPG", "top.webp"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("photos/*/street.*", ["a/street.png", "b/street.JPG"]),
        ("photos/a/**", ["deep/er/lake.tiff", "street.png"]),
        ("photos/**/*.tiff", ["a/deep/er/lake.tiff"]),
        ("photos/a/*", ["street.png"]),
        ("photos/[ab]/street.png", ["a/street.png"]),
    ],
)
def test_patterns_keep_the_layout_below_their_first_star(pattern: str, expected: list[str], photos: Path) -> None:
    assert places(pattern) == expected
    assert places(str(Path.cwd() / pattern)) == expected


def test_files_are_taken_as_they_are_and_each_picture_once(photos: Path) -> None:
    assert places("photos/a/notes.txt", "photos/top.webp", "photos/*.webp", "photos/missing.jpg") == [
        "notes.txt",
        "top.webp",
        "missing.jpg",
    ]
    (photos / "odd[1].png").touch()
    assert places("photos/odd[1].png") == ["odd[1].png"]


def test_results_are_no_input_of_the_next_run(photos: Path) -> None:
    assert places("photos", out="photos/a") == ["b/street.JPG", "top.webp"]
    assert places("photos/**", out="photos/a") == ["b/street.JPG", "top.webp"]
    with pytest.raises(DataError, match="'photos' is a folder of pictures itself"):
        places("photos", out="photos")


@pytest.mark.parametrize("name", ["photos/*.bmp", "empty"])
def test_nothing_found_is_an_error(name: str, photos: Path) -> None:
    Path("empty").mkdir()
    with pytest.raises(DataError, match="holds no picture"):
        places("photos", name)


def test_a_name_that_no_file_can_have_is_said(photos: Path) -> None:
    with pytest.raises(DataError, match="cannot be looked at: File name too long"):
        places("photos", "x" * 300 + ".png")


def test_targets_keep_the_place() -> None:
    source = Source(Path("x/a/street.jpg"), Path("a/street.jpg"))
    targets = targets_of(source, Path("out"), overlay=True, probabilities=True)
    assert [str(path) for path in targets.wanted()] == [
        "out/a/street.png",
        "out/a/street-overlay.png",
        "out/a/street-probabilities.npy",
    ]
    assert targets_of(source, Path("out"), overlay=False, probabilities=False).wanted() == [Path("out/a/street.png")]


def test_no_result_overwrites_a_picture_or_another_result(photos: Path) -> None:
    def check(out: str, *names: str) -> None:
        sources = find_sources(names, Path(out))
        targets = [targets_of(source, Path(out), overlay=True, probabilities=False) for source in sources]
        refuse_overwriting(sources, targets)

    check("out", "photos")
    with pytest.raises(DataError, match=r"overwrite the pictures themselves: photos/a/street\.png; choose another"):
        check("photos/a", "photos/a/street.png")
    (photos.parent / "link").symlink_to(photos)
    with pytest.raises(DataError, match="overwrite the pictures themselves"):
        check("link/a", "photos/a/street.png")
    with pytest.raises(DataError, match=r"several pictures would have the results out/street-overlay\.png"):
        check("out", "photos/a/street.png", "photos/b/street.JPG")
    (photos / "street-overlay.png").touch()
    with pytest.raises(DataError, match=r"several pictures would have the results out/street-overlay\.png"):
        check("out", "photos/a/street.png", "photos/street-overlay.png")
