"""From raw pictures to batches: datasets, shards, sample order, augmentation, loader."""
