"""The model registry: the service's door to MLflow and the only writer of versions and aliases."""
