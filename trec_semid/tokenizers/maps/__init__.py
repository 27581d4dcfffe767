"""Maps from items to semantic IDs, as files and as arrays."""
