"""Learns rows, draws rows."""
