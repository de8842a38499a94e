"""Readers of file formats, one a file. Each turns a file into units of documents (units.py)."""
