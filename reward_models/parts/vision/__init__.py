"""Detection, flow and measures of pixels and sound."""
