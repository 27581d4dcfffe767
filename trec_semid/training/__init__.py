"""The loop is a generator; optimizers from one config."""
