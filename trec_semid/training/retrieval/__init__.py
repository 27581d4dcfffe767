"""A retriever as a task: its config, inputs, model, lists and metrics."""
