"""Probing: labeled clips, sweeps of heads, scores."""
