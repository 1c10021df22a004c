"""When to refresh, what to learn, and how much of a batch is synthetic."""
