"""The durable queue: jobs, attempts, events, and the rules that move them."""
