"""Measurements on text that was not trained on."""
