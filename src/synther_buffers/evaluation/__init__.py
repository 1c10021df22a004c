"""How good a synthetic set is."""
