"""From item content to semantic IDs."""
