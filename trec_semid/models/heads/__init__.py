"""What a model says of the next item's codes: heads of each kind, and how a beam search asks them."""
