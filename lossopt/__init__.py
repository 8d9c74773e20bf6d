"""Train retrieval models, compare mining strategies, read recall@k reports. Importing this loads nothing heavy."""

__version__ = "0.1.0"
