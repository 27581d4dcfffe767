"""A server of bundles: HTTP in, one batch at a time to the engine, HTTP out. Wants the extra `serve`."""
