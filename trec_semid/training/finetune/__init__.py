"""The tokenizer in the loop: fine-tuned by the loss of the model that reads its codes."""
