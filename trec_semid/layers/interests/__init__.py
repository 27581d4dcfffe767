"""Which of a user's interests an item belongs to."""
