"""segfleet: a training service for semantic segmentation with a durable job queue."""
