"""What `export` writes: files of a bundle, and what its manifest says of them."""
