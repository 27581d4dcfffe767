"""Raw input: files, streams of rows, and columns read strictly."""
