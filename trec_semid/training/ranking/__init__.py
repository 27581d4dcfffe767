"""A ranker as a task: its config, inputs, model and predictions."""
