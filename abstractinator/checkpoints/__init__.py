"""Checkpoints: whole or not there, loaded without executing code."""
