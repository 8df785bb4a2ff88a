"""A model tried on one picture, as people do before they trust it."""
