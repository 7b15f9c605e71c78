"""Numbers that Fourier shell correlations are agreed to be read by."""

HALF_MAPS, REFERENCE = 0.143, 0.5
"""Thresholds between half maps, and against a truth or a model."""
CONE_DEG = 20.0
"""Half angle of a cone of directions (Tan et al. 2017)."""
