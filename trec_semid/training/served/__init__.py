"""What of finished runs goes to serving, and what it is held against."""
