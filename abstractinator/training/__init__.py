"""What surrounds a training run: checkpoints, tracking, plots."""
