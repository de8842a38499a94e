"""When boundaries stop moving: thresholds follow the entropy models while these learn, then both are frozen."""

from __future__ import annotations

from abstractinator.components.hierarchical.hierarchical_autoencoder import HierarchicalAutoencoder, Losses

_FOLLOW = 0.3  # of the way to a batch's own threshold, each step; the first batch sets it


def follow_or_freeze(model: HierarchicalAutoencoder, losses: Losses, *, done: float, first: bool) -> None:
    """To be called after each forward pass in training.

    done: share of the training that is behind. first: whether this is the first pass of the training.
    """
    for level, compressed in zip(model.levels, losses.compressed, strict=True):
        compressor = level.compressor
        if compressor.frozen or compressed.entropies is None:
            continue
        compressor.segmenter.calibrate(compressed.tokens, compressed.entropies, follow=1.0 if first else _FOLLOW)
        if done >= compressor.config.segmentation.train_fraction:
            compressor.freeze()
