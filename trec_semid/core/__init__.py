"""What every layer may use: config, errors, paths, logs, seeds, ranks. Knows nothing of recommendation."""
