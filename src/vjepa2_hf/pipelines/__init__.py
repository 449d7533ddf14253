"""Pipelines of transformers: latent planning, video features, anomaly detection."""
