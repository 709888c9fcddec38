"""mads: pretraining of language models that chooses its own training data while it trains."""

__version__ = "0.1.0"
