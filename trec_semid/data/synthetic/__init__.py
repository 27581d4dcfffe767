"""Planted worlds: data whose truth is known."""
