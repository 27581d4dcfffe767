"""Bundles: what goes to serving, and what reads it. Knows nothing of torchrec."""
