"""From an unaligned tilt series to an alignment: preparation, coarse correlation, tracks, joint fit, guard."""
