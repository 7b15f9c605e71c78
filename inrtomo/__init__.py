"""Cryo-ET tilt-series alignment and reconstruction with implicit neural representations."""

import os

from inrtomo._kernels import find_place

# numba's threads otherwise spin while they wait, which on a shared machine makes two slower than one
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
find_place()

__version__ = "0.1.0"
