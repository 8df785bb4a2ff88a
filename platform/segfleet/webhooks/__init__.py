"""Webhooks: job events are posted to addresses that users name, at least once, signed."""
