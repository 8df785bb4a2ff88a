"""What a training's driver finds out about its data before the first step, for all workers alike."""

from __future__ import annotations

from dataclasses import dataclass

from segfleet.spec.sections import DataSpec
from segfleet_pipelines.batch import Skips
from segfleet_pipelines.labels import label_warnings
from segfleet_pipelines.mixture import open_datasets
from segfleet_pipelines.reader import SampleIndex
from segfleet_pipelines.shuffle import used_samples
from segfleet_pipelines.verify import check_shards


@dataclass(frozen=True, slots=True)
class CheckedData:
    """Data that a training may begin on.

    Attributes:
        content_ids: Of each dataset.
        skips: For each dataset the samples to leave out, within the skip budget.
        left_out: These samples as people look for them: dataset, shard and key.
        warnings: What looks odd about the labels, a sentence each.
        num_unused: Samples of the first dataset's split that are outside data.share, damaged or not.
    """

    content_ids: tuple[str, ...]
    skips: Skips
    left_out: tuple[str, ...]
    warnings: tuple[str, ...]
    num_unused: int = 0

    @property
    def tags(self) -> dict[str, str]:
        """What the run says of its data, besides the first dataset's content id."""
        tags = {"segfleet.skipped_samples": str(len(self.left_out))}
        if self.num_unused:
            tags["segfleet.unused_samples"] = str(self.num_unused)
        if len(self.content_ids) > 1:
            tags["segfleet.mixed_content_ids"] = ",".join(self.content_ids[1:])
        return tags


def check_data(data: DataSpec) -> CheckedData:
    """Check that the datasets fit together and that every shard is the one that was prepared.

    Raises:
        DataError: they do not, or the damage is beyond the skip budget; validation has none.
    """
    check_shards(data.shards, data.val)
    indexes = open_datasets(data.sources)
    skips = tuple(check_shards(source.shards, source.split, data.skip_budget) for source in data.sources)
    used = frozenset(used_samples(len(indexes[0]), data.share).tolist())
    # Damage outside the share is nothing that this training leaves out.
    skips = (skips[0] & used, *skips[1:])
    left_out = tuple(
        f"{source.shards}, shard {index.shard_of(i)!r}, key {index.keys[i]!r}"
        for source, index, samples in zip(data.sources, indexes, skips, strict=True)
        for i in sorted(samples)
    )
    looked_at = [*indexes, SampleIndex.load(data.shards, data.val)]
    warnings = tuple(f"{index.manifest.name}, {text}" for index in looked_at for text in label_warnings(index))
    content_ids = tuple(index.manifest.content_id for index in indexes)
    return CheckedData(content_ids, skips, left_out, warnings, len(indexes[0]) - len(used))
