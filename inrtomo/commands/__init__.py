"""One small module per command: parsing and printing only."""
