"""One file per verb: its config class and run(config)."""
