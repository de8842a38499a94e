"""Bottlenecks: what turns vectors into codes; one class a kind."""
