"""Measurements. Each module is a script: `python -m benchmarks.NAME --help`, run from the repository's root."""
