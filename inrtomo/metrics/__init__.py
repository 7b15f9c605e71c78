"""How good an alignment or a volume is."""
