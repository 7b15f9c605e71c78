"""Implicit densities: positions in, non-negative density out, with gradients."""

from inrtomo.fields.density import DensityField, LatticeSpec, lattice_axes
from inrtomo.fields.make import field_of, load_field, make_field
from inrtomo.fields.optimiser import Adam

__all__ = ["Adam", "DensityField", "LatticeSpec", "field_of", "lattice_axes", "load_field", "make_field"]
