"""Does this alignment, table or metadata belong to these images?

Everything that comes from elsewhere is fitted to a series here, and nowhere else:

- `order`: lists of angles held against each other, whatever they are lists of;
- `alignment`: an alignment's entries put in the order of the images, and its lengths in their pixels;
- `metadata`: sections of an ``.mdoc``, doses and pixel sizes;
- `tables`: tables with a row an image;
- `halves`: stacks of odd and even frames.

What belongs is taken, what can be put right in one way only is put right and said, all else is refused by name.
"""
