"""Settings: one literal dict, checked into typed dataclasses."""
