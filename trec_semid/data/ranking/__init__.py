"""A dataset as rows for a ranker."""
