"""What preparing costs: CPU time of each part, and samples per second against bare concatenation of the bytes.

The pictures are copied to as many files as asked for, so that the page cache holds them. Parts are medians of rounds;
the whole is one run. Other work on the same machine slows wall time; trust CPU time first.
Run: python benchmarks/bench_prepare.py [--photos DIR] [--samples N] [--processes N ...]

DIR: pictures (.jpg) and masks (.png) of equal stems anywhere below it, such as ADEChallengeData2016; else drawn ones.
"""

from __future__ import annotations

import argparse
import io
import os
import resource
import shutil
import statistics
import tarfile
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

from segfleet.spec.kinds import PrepareSpec
from segfleet.spec.resolve import resolve_spec
from segfleet_pipelines import writer
from segfleet_pipelines.check import LabelRules, check_sample, final_labels
from segfleet_pipelines.datasets.base import RawSample
from segfleet_pipelines.datasets.opening import open_dataset
from segfleet_pipelines.datasets.synthetic import generate
from segfleet_pipelines.mask_codec import MASK_MEMBER, pack_mask
from segfleet_pipelines.picture import check_pixels, decode_mask, read_header
from segfleet_pipelines.tar_write import TarFileWriter, tar_header

Member = tuple[str, bytes]
ROUNDS = 5


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, help="folder with pictures and masks; drawn ones if not given")
    parser.add_argument("--samples", type=int, default=600)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    args = parser.parse_args()
    warnings.simplefilter("ignore", ResourceWarning)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        raw = tile(folder, args.photos, args.samples)
        samples = open_dataset("folder", raw, val_share=0.0, seed=0).splits["train"]
        size = sum(path.stat().st_size for path in raw.rglob("*") if path.is_file())
        print(f"{len(samples)} samples, {size / len(samples) / 1024:.1f} KiB each (picture and raw mask)\n")
        for line in parts(samples, LabelRules.of(open_dataset("folder", raw, val_share=0.0, seed=0))):
            print(line)
        print()
        for line in containers(folder, samples):
            print(line)
        print()
        for processes in args.processes:
            print(whole(raw, folder / f"out{processes}", processes, len(samples)))


def tile(folder: Path, photos: Path | None, count: int) -> Path:
    """A raw `folder` dataset of `count` copies."""
    if photos is None:
        photos = folder / "drawn"
        generate(photos, samples=min(count, 100), seed=0)
    masks = {path.stem: path for path in photos.rglob("*.png")}
    pairs = [(path, masks[path.stem]) for path in sorted(photos.rglob("*.jpg")) if path.stem in masks]
    if not pairs:
        raise SystemExit(f"error: no .jpg with a .png of the same stem in {photos}")
    raw = folder / "raw"
    for part in ("images", "masks"):
        (raw / part).mkdir(parents=True)
    for i in range(count):
        image, mask = pairs[i % len(pairs)]
        shutil.copy(image, raw / "images" / f"{i:06d}.jpg")
        shutil.copy(mask, raw / "masks" / f"{i:06d}.png")
    # The labels of ADE20K: 0 is ignored, 1..150 become 0..149.
    mapping = ", ".join(["0: 255", "255: 255", *(f"{label}: {label - 1}" for label in range(1, 151))])
    names = ", ".join(f"c{i}" for i in range(150))
    (raw / "classes.yaml").write_text(f"names: [{names}]\nlabel_map: {{{mapping}}}\n")
    return raw


def parts(samples: list[RawSample], rules: LabelRules) -> Iterator[str]:
    """CPU time of each part, a line each."""
    chosen = samples[:60]
    images, masks = [s.image.read() for s in chosen], [s.mask.read() for s in chosen]
    raw_labels = [decode_mask(mask) for mask in masks]
    labels = [final_labels(chosen[0].mask, mask, rules)[0] for mask in raw_labels]
    yield f"{'part of the work':44} {'CPU us/sample':>14}"
    jobs: dict[str, Callable[[], object]] = {
        "read the two files": lambda: [(s.image.read(), s.mask.read()) for s in chosen],
        "picture: header": lambda: [read_header(image) for image in images],
        "picture: complete check": lambda: [check_pixels(image) for image in images],
        "mask: decode": lambda: [decode_mask(mask) for mask in masks],
        "mask: check, map and count labels": lambda: [final_labels(chosen[0].mask, m, rules) for m in raw_labels],
        "mask: pack (zstd)": lambda: [pack_mask(mask) for mask in labels],
        "all of that": lambda: [check_sample(sample, rules, "keep") for sample in chosen],
    }
    for name, job in jobs.items():
        yield f"{name:44} {cpu_us(job) / len(chosen):14.0f}"


def containers(folder: Path, samples: list[RawSample]) -> Iterator[str]:
    """CPU and wall time to bring the same bytes into one file, a line for each way."""
    members: list[Member] = []
    for sample in samples:
        members += [
            (f"{sample.key}.image.jpg", sample.image.read()),
            (f"{sample.key}.{MASK_MEMBER}", sample.mask.read()),
        ]
    ways: dict[str, Callable[[Path], None]] = {
        "concatenate (the limit)": lambda path: concatenate(path, members),
        "our tar headers": lambda path: write_headers(path, members),
        "our tar writer, with SHA-256": lambda path: write_own(path, members),
        "tarfile": lambda path: write_tarfile(path, members),
        "webdataset.TarWriter": lambda path: write_webdataset(path, members),
    }
    yield f"{'bytes in memory -> one file, synced':44} {'CPU us/sample':>14} {'samples/s':>10}"
    for name, way in ways.items():
        figures = []
        for _ in range(ROUNDS):
            path = folder / "container"
            begin, cpu = time.perf_counter(), time.process_time()
            way(path)
            figures.append((time.process_time() - cpu, time.perf_counter() - begin))
            path.unlink()
        cpu_s, wall_s = (statistics.median(column) for column in zip(*figures, strict=True))
        yield f"{name:44} {1e6 * cpu_s / len(samples):14.0f} {len(samples) / wall_s:10.0f}"


def concatenate(path: Path, members: list[Member]) -> None:
    """Nothing but the bytes."""
    with path.open("wb") as file:
        for _, data in members:
            file.write(data)
        file.flush()
        os.fsync(file.fileno())


def write_headers(path: Path, members: list[Member]) -> None:
    """What ours costs without the hash, which the others do not make."""
    with path.open("wb") as file:
        for name, data in members:
            file.write(tar_header(name, len(data)))
            file.write(data)
            file.write(bytes(-len(data) % tarfile.BLOCKSIZE))
        file.flush()
        os.fsync(file.fileno())


def write_own(path: Path, members: list[Member]) -> None:
    """As `prepare` does."""
    with TarFileWriter(path) as tar:
        for name, data in members:
            tar.add(name, data)
        tar.finish()


def write_tarfile(path: Path, members: list[Member]) -> None:
    """The standard library's."""
    with path.open("wb") as file:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as tar:
            for name, data in members:
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        os.fsync(file.fileno())


def write_webdataset(path: Path, members: list[Member]) -> None:
    """WebDataset's own."""
    # Here, because the processes of `prepare` import this file again, and this imports torch.
    import webdataset as wds

    with path.open("wb") as file:
        with wds.TarWriter(file, encoder=False) as tar:
            for (image_name, image), (mask_name, mask) in zip(members[::2], members[1::2], strict=True):
                key, _, suffix = image_name.partition(".")
                tar.write({"__key__": key, suffix: image, mask_name.partition(".")[2]: mask})
        os.fsync(file.fileno())


def whole(raw: Path, out: Path, processes: int, count: int) -> str:
    """One run of `prepare`, with shards enough for all processes."""
    writer.MAX_SHARD_SAMPLES = min(100, count)
    document = {"kind": "prepare", "name": "bench", "dataset": "folder", "raw": str(raw), "out": str(out)}
    spec = resolve_spec({**document, "processes": processes, "val_share": 0.0})
    assert isinstance(spec, PrepareSpec)
    begin, before = time.perf_counter(), cpu_of_all_s()
    writer.prepare(spec)
    wall, cpu = time.perf_counter() - begin, cpu_of_all_s() - before
    again = time.perf_counter()
    base = replace_out(spec, out.with_name(f"{out.name}-next"), out)
    writer.prepare(base)
    again = time.perf_counter() - again
    return (
        f"prepare, {processes} processes: {count / wall:6.0f} samples/s, {1e6 * cpu / count:6.0f} us CPU a sample "
        f"(with start-up); a version without changes: {count / again:6.0f} samples/s"
    )


def replace_out(spec: PrepareSpec, out: Path, base: Path) -> PrepareSpec:
    """The same, on top of a finished dataset."""
    return spec.model_copy(update={"out": str(out), "base": str(base)})


def cpu_us(job: Callable[[], object]) -> float:
    """Median CPU time of a job."""
    figures = []
    for _ in range(ROUNDS):
        begin = time.process_time()
        job()
        figures.append(time.process_time() - begin)
    return 1e6 * statistics.median(figures)


def cpu_of_all_s() -> float:
    """CPU time of this process and of those that have ended."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


if __name__ == "__main__":
    main()
