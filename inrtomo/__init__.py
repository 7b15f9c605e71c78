"""Cryo-ET tilt-series alignment and reconstruction with implicit neural representations."""

__version__ = "0.1.0"
