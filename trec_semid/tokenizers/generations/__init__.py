"""A store of numbered generations of semantic IDs: published whole, compared, rolled back, collected."""
