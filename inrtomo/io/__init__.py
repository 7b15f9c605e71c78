"""Files: images, alignments and tables in our formats and in those of other programs; conventions change only here."""
