"""What every room may use: config, errors, paths, seeds, shapes. Knows nothing of recommendation."""
