"""Tomograms from a raw stack and its alignment."""
