"""What a job does on the cluster."""
