"""Visualization: what models see, as numbers (measures) and as figures."""
