"""Rankers and retrievers: ordinary modules."""
