"""What the steps of training take: time by part, and a trace of some of them."""
