"""What this machine has and what works on it."""
