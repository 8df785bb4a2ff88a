from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import io
import json
import os
import re
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from file_server import Behaviour, Fault, file_server
from segfleet.errors import DataError
from segfleet_pipelines import extract as extract_module
from segfleet_pipelines.datasets.opening import open_dataset
from segfleet_pipelines.download import DownloadReport, download
from segfleet_pipelines.raw_files import LOGIN_STEPS, RAW_FILES
from segfleet_pipelines.tool import main

CAMVID = RAW_FILES["camvid"][0].name.removesuffix(".zip")


class Quiet:
    def __init__(self) -> None:
        self.moves: dict[str, int] = {}
        self.warnings: list[str] = []

    def moved(self, what: str, done: int, total: int | None) -> None:
        self.moves[what] = done

    def warn(self, message: str) -> None:
        self.warnings.append(message)


@pytest.fixture(autouse=True)
def _quiet_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sync", lambda: None)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)


def zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def tarred(files: dict[str, bytes], mode: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def published() -> dict[str, bytes]:
    """Every file of the table, small, in the layout of the real one."""
    ade = [f"images/training/ADE_{i}.jpg" for i in "ab"] + [f"annotations/training/ADE_{i}.png" for i in "ab"]
    context = {
        "images": [{"image_id": 1, "file_name": "2008_1.jpg", "phase": "train", "height": 2, "width": 2}],
        "annos_segmentation": [
            {"image_id": 1, "category_id": 2, "segmentation": {"size": [2, 2], "counts": "04"}},
        ],
    }
    voc10, voc12 = "VOCdevkit/VOC2010/", "VOCdevkit/VOC2012/"
    city = "aachen/aachen_000000_000019_"
    return {
        "ADEChallengeData2016.zip": zipped({f"ADEChallengeData2016/{name}": b"x" for name in ade}),
        "VOCtrainval_03-May-2010.tar": tarred({f"{voc10}JPEGImages/2008_1.jpg": b"x"}, "w"),
        "trainval_merged.json": json.dumps(context).encode(),
        "VOCtrainval_11-May-2012.tar": tarred(
            {
                **{f"{voc12}JPEGImages/{stem}.jpg": b"x" for stem in ("1", "2", "3")},
                **{f"{voc12}SegmentationClass/{stem}.png": b"x" for stem in ("1", "2")},
                f"{voc12}ImageSets/Segmentation/train.txt": b"1\n",
                f"{voc12}ImageSets/Segmentation/val.txt": b"2\n",
            },
            "w",
        ),
        "benchmark.tgz": tarred({"benchmark_RELEASE/dataset/cls/3.mat": b"x"}, "w:gz"),
        f"{CAMVID}.zip": zipped(
            {
                f"{CAMVID}/README.md": b"x",
                f"{CAMVID}/CamVid/train.txt": b"/SegNet/CamVid/train/a.png /SegNet/CamVid/trainannot/a.png\n",
                f"{CAMVID}/CamVid/train/a.png": b"x",
                f"{CAMVID}/CamVid/trainannot/a.png": b"x",
            }
        ),
        "leftImg8bit_trainvaltest.zip": zipped({f"leftImg8bit/train/{city}leftImg8bit.png": b"x"}),
        "gtFine_trainvaltest.zip": zipped({f"gtFine/train/{city}gtFine_labelIds.png": b"x"}),
    }


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Behaviour]:
    """A mirror of the small files, and a table that knows their digests."""
    contents = published()
    for dataset, files in RAW_FILES.items():
        known = [(file, contents[file.name]) for file in files]
        small = [
            dataclasses.replace(file, digests=(f"sha1:{hashlib.sha1(data).hexdigest()}",), size=len(data))
            for file, data in known
        ]
        monkeypatch.setitem(RAW_FILES, dataset, tuple(small))
    with file_server(contents) as running:
        yield running


def get(dataset: str, raw: Path, server: Behaviour, *, discard_archives: bool = False) -> DownloadReport:
    return download(
        dataset, raw, Quiet(), mirror=f"{server.url}/", discard_archives=discard_archives, sleep=lambda _seconds: None
    )


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


SAMPLES = {
    "ade20k": {"train": 2},
    "pascal_context": {"train": 1},
    "pascal_context_59": {"train": 1},
    "voc": {"train": 2, "val": 1},
    "camvid": {"train": 1},
    "cityscapes": {"train": 1},
}


@pytest.mark.parametrize("discard_archives", [False, True])
@pytest.mark.parametrize("dataset", RAW_FILES)
def test_what_is_downloaded_is_what_prepare_reads(
    dataset: str, server: Behaviour, tmp_path: Path, discard_archives: bool
) -> None:
    result = get(dataset, tmp_path / "raw", server, discard_archives=discard_archives)
    opened = open_dataset(dataset, tmp_path / "raw", val_share=0.0, seed=0)
    assert {name: len(samples) for name, samples in opened.splits.items()} == SAMPLES[dataset]
    assert result.next == f"segfleet prepare {dataset} --raw {tmp_path}/raw --out shards/{dataset}"


@pytest.mark.parametrize("dataset", RAW_FILES)
def test_nothing_is_downloaded_or_unpacked_twice(dataset: str, server: Behaviour, tmp_path: Path) -> None:
    first = get(dataset, tmp_path, server, discard_archives=True)
    asked = len(server.asked)
    assert asked == len(RAW_FILES[dataset])
    again = get(dataset, tmp_path, server)
    assert len(server.asked) == asked
    assert [file.sha256 for file in again.files] == [file.sha256 for file in first.files]
    assert [file.url for file in again.files] == [None] * asked
    assert [file.unpacked for file in again.files] == [file.unpacked for file in first.files]


def test_archives_are_kept_unless_they_are_discarded(server: Behaviour, tmp_path: Path) -> None:
    get("camvid", tmp_path, server)
    assert names(tmp_path) == {"CamVid", f"{CAMVID}.zip", f"{CAMVID}.zip.sha256"}
    report = get("camvid", tmp_path, server, discard_archives=True)
    assert names(tmp_path) == {"CamVid"}
    assert report.files[0].bytes == len(server.files[f"{CAMVID}.zip"])
    assert get("camvid", tmp_path, server).files[0].bytes is None


def test_a_file_that_is_read_as_it_is_is_never_discarded(server: Behaviour, tmp_path: Path) -> None:
    get("ade20k", tmp_path, server, discard_archives=True)
    assert names(tmp_path) == {"ADEChallengeData2016.zip", "ADEChallengeData2016.zip.sha256"}


def test_a_failed_unpacking_keeps_the_archive_and_is_repeated_without_download(
    server: Behaviour, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as full:
        full.setattr(extract_module, "free_bytes", lambda _folder: 0)
        with pytest.raises(DataError, match="no room"):
            get("camvid", tmp_path, server)
    assert names(tmp_path) == {f"{CAMVID}.zip", f"{CAMVID}.zip.sha256"}
    get("camvid", tmp_path, server)
    assert len(server.asked) == 1
    assert (tmp_path / "CamVid").is_dir()


@pytest.mark.parametrize("dataset", RAW_FILES)
def test_files_that_the_user_put_there_are_checked_and_used(dataset: str, server: Behaviour, tmp_path: Path) -> None:
    for file in RAW_FILES[dataset]:
        (tmp_path / file.name).write_bytes(server.files[file.name])
    get(dataset, tmp_path, server)
    assert server.asked == []
    assert all((tmp_path / f"{file.name}.sha256").is_file() for file in RAW_FILES[dataset])


def test_a_file_that_was_changed_later_is_noticed(server: Behaviour, tmp_path: Path) -> None:
    get("ade20k", tmp_path, server)
    (tmp_path / "ADEChallengeData2016.zip").write_bytes(b"changed")
    with pytest.raises(DataError, match=r"sha1 is \w{40}, not \w{40}, sha256 is \w{64}, not \w{64}; remove it"):
        get("ade20k", tmp_path, server)


def test_a_file_without_a_published_digest_is_recorded(
    server: Behaviour, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unknown = tuple(dataclasses.replace(file, digests=(), size=None) for file in RAW_FILES["ade20k"])
    monkeypatch.setitem(RAW_FILES, "ade20k", unknown)
    (tmp_path / "ADEChallengeData2016.zip").write_bytes(b"from nowhere")
    with pytest.raises(DataError, match="neither a published nor a recorded digest"):
        get("ade20k", tmp_path, server)
    (tmp_path / "ADEChallengeData2016.zip").unlink()
    report = get("ade20k", tmp_path, server)
    assert report.files[0].checked == ()
    assert report.files[0].sha256 in (tmp_path / "ADEChallengeData2016.zip.sha256").read_text()
    assert get("ade20k", tmp_path, server).files[0].url is None


def test_a_folder_of_unknown_origin_is_neither_trusted_nor_touched(server: Behaviour, tmp_path: Path) -> None:
    (tmp_path / "CamVid").mkdir()
    with pytest.raises(DataError, match="was not unpacked from"):
        get("camvid", tmp_path, server)
    assert server.asked == []
    assert names(tmp_path) == {"CamVid"}


def test_two_downloads_to_one_folder_do_not_mix(server: Behaviour, tmp_path: Path) -> None:
    other = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    with pytest.raises(DataError, match="another download"):
        get("ade20k", tmp_path, server)
    os.close(other)
    get("ade20k", tmp_path, server)


def test_progress_and_trouble_are_told(server: Behaviour, tmp_path: Path) -> None:
    server.faults.append(Fault(status=503))
    told = Quiet()
    download("camvid", tmp_path, told, mirror=server.url, sleep=lambda _seconds: None)
    assert told.moves == {
        f"downloading {CAMVID}.zip": len(server.files[f"{CAMVID}.zip"]),
        f"unpacking {CAMVID}.zip": 61,
    }
    assert told.warnings == [f"{server.url}/{CAMVID}.zip: the server answered 503; next try in 1 s"]


def test_cityscapes_says_how_to_log_in(tmp_path: Path) -> None:
    with pytest.raises(DataError) as refused:
        download("cityscapes", tmp_path / "city", Quiet())
    for words in ("https://www.cityscapes-dataset.com", "leftImg8bit_trainvaltest.zip", "gtFine_trainvaltest.zip"):
        assert words in str(refused.value)
    assert f"put both into {tmp_path}/city" in str(refused.value)


def test_packages_of_cityscapes_are_checked(server: Behaviour, tmp_path: Path) -> None:
    for name in ("leftImg8bit_trainvaltest.zip", "gtFine_trainvaltest.zip"):
        (tmp_path / name).write_bytes(server.files[name])
    assert [file.url for file in download("cityscapes", tmp_path, Quiet()).files] == [None, None]
    (tmp_path / "gtFine_trainvaltest.zip").write_bytes(b"half")
    with pytest.raises(DataError, match="not the expected file"):
        download("cityscapes", tmp_path, Quiet())


def test_the_table_holds_plain_addresses_and_well_formed_digests() -> None:
    lengths = {"sha1": 40, "md5": 32}
    for dataset, files in RAW_FILES.items():
        for file in files:
            assert file.digests
            for digest in file.digests:
                algorithm, _, value = digest.partition(":")
                assert re.fullmatch(r"[0-9a-f]+", value)
                assert len(value) == lengths[algorithm]
            assert {httpx.URL(url).scheme for url in file.urls} <= {"http", "https"}
            assert file.urls or dataset in LOGIN_STEPS


def test_the_command_prints_what_it_got_and_what_to_run_next(
    server: Behaviour, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = tmp_path / "my data"
    command = ["download", "camvid", "--raw", str(raw), "--mirror", server.url]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "downloaded, sha256 " in printed
    assert "fits the published sha1:" in printed
    assert f"next: segfleet prepare camvid --raw '{raw}' --out shards/camvid" in printed
    assert main([*command, "--json", "--discard-archives"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["files"][0]["unpacked"] == str(raw / "CamVid")
    assert names(raw) == {"CamVid"}


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["cityscapes"], 1, "after a login only"),
        (["ade20k", "--mirror", "ftp://x/"], 1, "the mirror must be"),
        (["ade20k", "--mirror", "http://127.0.0.1:9/x", "--raw", "/proc/x"], 1, "cannot be written"),
    ],
)
def test_mistakes_of_a_download_get_a_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, message: str
) -> None:
    assert main(["download", "--raw", str(tmp_path), *arguments]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err


def test_an_unknown_dataset_is_wrong_use(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["download", "coco", "--raw", str(tmp_path)])
    assert "camvid" in capsys.readouterr().err
