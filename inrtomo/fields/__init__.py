"""Implicit densities: positions in, non-negative density out, with gradients."""

from inrtomo.fields.density import DensityField, LatticeSpec, lattice_axes
from inrtomo.fields.make import load_field, make_field
from inrtomo.fields.optimiser import Adam

__all__ = ["Adam", "DensityField", "LatticeSpec", "lattice_axes", "load_field", "make_field"]
