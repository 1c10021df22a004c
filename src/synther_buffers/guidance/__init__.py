"""Which transitions are worth generating: their relevance, and synthetic rows that are chosen by it."""
