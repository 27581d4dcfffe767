"""How good codes are: of the items a tokenizer was fitted on, and of new ones."""
