"""The two halves of HyMiRec: one reads a long history cheaply, one refines what is recent."""
