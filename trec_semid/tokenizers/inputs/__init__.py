"""Content of items on its way into a tokenizer."""
