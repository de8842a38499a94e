"""Abstractinator: bytes of text into learned discrete codes, and back."""
