"""What a retriever lists for the users of a split, and what is said of these lists."""
