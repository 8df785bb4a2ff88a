from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from registered import make_pulled_model
from segfleet_jobs import predict, prediction_files
from segfleet_jobs.prediction_files import ProbabilityFile, made_by
from segfleet_jobs.prediction_progress import progress
from segfleet_jobs.registered_model import load_registered
from segfleet_models.inference import WindowConfig, predict_probabilities
from segfleet_models.inference import predict as predict_labels
from segfleet_pipelines.photo import read_photo


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_pulled_model(tmp_path / "model")


def make_photo(path: Path, size: tuple[int, int] = (50, 40), seed: int = 0, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    Image.fromarray(pixels).resize((size[1] * 2, size[0] * 2)).save(path, **options)
    return path


def run(model: Path, *arguments: object) -> int:
    return predict.main(["--model", str(model), *map(str, arguments)])


def test_a_folder_is_predicted_in_its_layout(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = tmp_path / "photos"
    for number, name in enumerate(("a/street.jpg", "b/street.png", "b/c/lake.tiff")):
        make_photo(photos / name, (30 + number, 40), number)
    assert run(model, photos, "--out", tmp_path / "out", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert [entry["image"] for entry in document["predictions"]] == [
        str(photos / name) for name in ("a/street.jpg", "b/c/lake.tiff", "b/street.png")
    ]
    assert (document["failed"], document["skipped"]) == ([], [])
    stored = load_registered(model).stored
    for entry in document["predictions"]:
        pixels = read_photo(Path(entry["image"]), 10**6)
        expected = predict_labels(stored.model, pixels, stored.window).numpy()
        with Image.open(entry["mask"]) as mask, Image.open(entry["overlay"]) as overlay:
            assert mask.mode == "P"
            assert tuple(mask.getpalette()[3:6]) == stored.palette[1]  # type: ignore[index]
            assert np.array_equal(np.asarray(mask), expected)
            assert overlay.size == mask.size
        assert sum(entry["shares"].values()) == pytest.approx(1, abs=0.001)
    assert (tmp_path / "out" / "b" / "c" / "lake-overlay.png").is_file()
    assert not list((tmp_path / "out").rglob(".*"))


def test_the_mask_lies_as_people_see_the_picture(model: Path, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    photo = make_photo(tmp_path / "phone.jpg", (30, 60), exif=exif)
    assert run(model, photo, "--out", tmp_path / "out") == 0
    with Image.open(photo) as stored, Image.open(tmp_path / "out" / "phone.png") as mask:
        assert stored.size == (120, 60)
        assert mask.size == (60, 120)


def test_what_cannot_be_read_is_named_at_the_end_and_the_rest_goes_on(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = tmp_path / "photos"
    make_photo(photos / "a.jpg")
    (photos / "b.jpg").write_bytes(b"no picture")
    make_photo(photos / "c.png")
    make_photo(photos / "d.png", (400, 400))
    code = run(model, photos, tmp_path / "gone.png", "--out", tmp_path / "out", "--max-megapixels", "0.5", "--json")
    assert code == 1
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert [Path(entry["image"]).name for entry in document["predictions"]] == ["a.jpg", "c.png"]
    assert [Path(entry["image"]).name for entry in document["failed"]] == ["b.jpg", "d.png", "gone.png"]
    assert (tmp_path / "out" / "c.png").is_file()
    *named, last = err.splitlines()
    assert [word in line for word, line in zip(("b.jpg", "d.png", "gone.png"), named[-3:], strict=True)] == [True] * 3
    assert "800x800 pixels are more than the limit of 0.5 megapixels" in err
    assert last == "error: 3 of 5 pictures failed"


def test_probabilities_are_those_that_the_mask_follows_from(model: Path, tmp_path: Path) -> None:
    photo = make_photo(tmp_path / "x.png")
    assert run(model, photo, "--out", tmp_path / "out", "--probabilities", "--no-overlay") == 0
    values = np.load(tmp_path / "out" / "x-probabilities.npy")
    assert (values.dtype, values.shape) == (np.float16, (3, 100, 80))
    stored = load_registered(model).stored
    expected = predict_probabilities(stored.model, read_photo(photo, 10**6), stored.window)
    np.testing.assert_allclose(values.transpose(1, 2, 0), expected.numpy(), atol=1e-3)
    with Image.open(tmp_path / "out" / "x.png") as mask:
        assert (np.asarray(mask) == expected.numpy().argmax(-1)).mean() > 0.999
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["x-probabilities.npy", "x.png"]


def test_probabilities_are_written_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prediction_files, "_MAPPED_BYTES", 40)
    values = torch.rand(7, 9, 4)
    file = ProbabilityFile(tmp_path / "p.npy", 4, (7, 9))
    for rows in (slice(0, 3), slice(3, 7)):
        for columns in (slice(0, 5), slice(5, 9)):
            file.take(rows, columns, values[rows, columns])
    file.close()
    assert np.array_equal(np.load(tmp_path / "p.npy"), values.permute(2, 0, 1).half().numpy())


def test_results_are_renewed_but_never_a_stranger_s_file(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo, out = make_photo(tmp_path / "x.jpg"), tmp_path / "out"
    assert run(model, photo, "--out", out) == 0
    assert made_by(out / "x.png") == "tiny/3 run7"
    (out / "x-overlay.png").write_bytes(b"old")
    assert run(model, photo, "--out", out) == 0
    assert (out / "x-overlay.png").stat().st_size > 3
    foreign = make_photo(tmp_path / "other" / "x.png").read_bytes()
    assert run(model, photo, "--out", tmp_path / "other") == 1
    assert "is no result of 'segfleet predict'; choose another --out" in capsys.readouterr().err
    assert (tmp_path / "other" / "x.png").read_bytes() == foreign
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["x.png"]


def test_a_long_run_goes_on_where_it_ended(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(3):
        make_photo(tmp_path / "photos" / f"{number}.jpg", seed=number)
    common = (tmp_path / "photos", "--out", tmp_path / "out", "--skip-existing", "--json")
    assert run(model, *common) == 0
    (tmp_path / "out" / "1-overlay.png").unlink()
    before = (tmp_path / "out" / "0.png").stat().st_mtime_ns
    capsys.readouterr()
    assert run(model, *common) == 0
    document = json.loads(capsys.readouterr().out)
    assert [Path(name).name for name in document["skipped"]] == ["0.jpg", "2.jpg"]
    assert [Path(entry["image"]).name for entry in document["predictions"]] == ["1.jpg"]
    assert (tmp_path / "out" / "0.png").stat().st_mtime_ns == before
    # Another model's results are not done.
    other = make_pulled_model(tmp_path / "other")
    (other / "registered_model_meta").write_text("{model_name: tiny, model_version: 4}")
    assert run(other, *common) == 0
    assert json.loads(capsys.readouterr().out)["skipped"] == []


def test_more_than_255_classes_make_a_mask_of_16_bits(tmp_path: Path) -> None:
    model = make_pulled_model(tmp_path / "model", [f"c{i}" for i in range(300)], always=277)
    photo = make_photo(tmp_path / "x.png")
    assert run(model, photo, "--out", tmp_path / "out") == 0
    with Image.open(tmp_path / "out" / "x.png") as mask, Image.open(tmp_path / "out" / "x-overlay.png") as overlay:
        assert mask.mode == "I;16"
        assert (np.asarray(mask) == 277).all()
        tint = np.array(load_registered(model).stored.palette[277])
        wanted = np.rint(read_photo(photo, 10**6) * 0.45 + tint * 0.55)
        assert np.abs(np.asarray(overlay) - wanted).max() <= 1


def test_a_folder_that_cannot_be_written_to_ends_the_run(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert run(model, make_photo(tmp_path / "x.png"), "--out", tmp_path / "file") == 1
    assert "cannot be written" in capsys.readouterr().err


def test_a_missing_model_is_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, make_photo(tmp_path / "x.png"), "--out", tmp_path / "out") == 2
    assert "Traceback" not in capsys.readouterr().err


def test_small_pictures_go_through_the_model_together_and_large_ones_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predict, "_PIXELS_AT_ONCE", 1500)
    model = make_pulled_model(tmp_path / "model", window=WindowConfig(32, 32))
    for number, side in enumerate((16, 16, 40, 16, 16, 16, 16, 16)):
        make_photo(tmp_path / "photos" / f"{number}.png", (side // 2, side // 2))
    seen = []
    many = predict.predict_many
    monkeypatch.setattr(predict, "predict_many", lambda m, images, w: seen.append(len(images)) or many(m, images, w))
    assert run(model, tmp_path / "photos", "--out", tmp_path / "out") == 0
    assert seen == [2, 1, 4, 1]


def test_progress_without_a_terminal_is_a_line_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    times = iter([0.0, 4.0, 12.0, 15.0, 30.0])
    with progress("predicting", 10, lambda: next(times)) as tell:
        for done in (2, 4, 5, 10):
            tell(done)
    assert capsys.readouterr().err == "predicting: 4 of 10, 18s left\n"


@pytest.mark.integration
def test_a_mask_of_64_megapixels_is_known_again_and_a_stranger_s_huge_file_is_none(tmp_path: Path) -> None:
    known = PngInfo()
    known.add_text(prediction_files.MODEL_KEYWORD, "streets/3")
    Image.new("1", (8000, 8000)).save(tmp_path / "mask.png", pnginfo=known)
    Image.new("1", (20000, 20000)).save(tmp_path / "huge.png")
    assert made_by(tmp_path / "mask.png") == "streets/3"
    assert made_by(tmp_path / "huge.png") is None


@pytest.mark.parametrize("number", ["inf", "nan", "0", "-3", "many"])
def test_a_bound_that_is_no_number_of_megapixels_is_refused(number: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        predict.main(["--model", "x", "a.png", "--out", "o", f"--max-megapixels={number}"])
    assert caught.value.code == 2
    assert "is no number of megapixels" in capsys.readouterr().err


def test_shares_of_classes_of_one_name_add_up() -> None:
    labels = np.array([[0, 1], [2, 2]], dtype=np.uint8)
    assert predict._shares(labels, ("road", "car", "road")) == {"road": 0.75, "car": 0.25}
