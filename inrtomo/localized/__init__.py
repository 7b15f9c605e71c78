"""The localized MLP: a block of voxels from small patches around its projections in every filtered tilt.

After V. Kishore et al., *Localized Supervised Learning for Cryo-ET Reconstruction* (2025). `bank` says which numbers
describe a patch, `tilts` and `sampling` find them along the deformed rays, `scaling` makes them free of units,
`network` turns them into density, `pairs`, `samples` and `training` teach it, `weights` keeps it, `inference` uses it.
`patches` is the plain form, voxel by voxel, that the fast one is tested against.
"""
