"""Small torch modules that take sizes."""
