"""A range of days: what is asked for."""
