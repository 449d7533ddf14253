"""Hub: published and transformers' weight formats, and model cards."""
