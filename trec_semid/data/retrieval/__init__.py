"""A dataset as sequences for next-item retrieval."""
