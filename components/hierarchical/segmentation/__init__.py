"""Where segments begin: the rules, one class a rule, and the segments that they make."""

from abstractinator.components.hierarchical.segmentation.rules import check_rule, segmenter_of
from abstractinator.components.hierarchical.segmentation.segmentation_config import ENTROPY_RULES, SegmentationConfig
from abstractinator.components.hierarchical.segmentation.segmenter import SegmentationState, Segmenter
from abstractinator.components.hierarchical.segmentation.segments import (
    DistinctSegments,
    Segments,
    distinct_segments,
    one_segment_a_row,
    take_segments,
)

__all__ = [
    "ENTROPY_RULES",
    "DistinctSegments",
    "SegmentationConfig",
    "SegmentationState",
    "Segmenter",
    "Segments",
    "check_rule",
    "distinct_segments",
    "one_segment_a_row",
    "segmenter_of",
    "take_segments",
]
