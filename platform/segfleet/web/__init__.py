"""The web page: the queue and its jobs at a glance."""
