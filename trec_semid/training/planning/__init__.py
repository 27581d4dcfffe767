"""Sizes that tables are planned for, and what would make them fit."""
