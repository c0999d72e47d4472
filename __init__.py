"""Puna: a local server for multimodal language models."""

__version__ = "0.1.0"
