"""Modules for `evaluate`, loaded from the package's folder without the Hub: `evaluate.load("FOLDER/metrics/NAME")`."""
