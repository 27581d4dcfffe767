"""From raw logs and content to plain batches. Knows nothing of torchrec."""
