"""Abstractinator: bytes of text into learned discrete codes, and back."""

__version__ = "0.3.0"
