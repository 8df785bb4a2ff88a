"""The cluster: the door to Ray Jobs, and the embedded Ray and MLflow of one machine."""
