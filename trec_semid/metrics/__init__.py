"""Pure metric functions and accumulators that merge across ranks."""
