"""Interactions chosen, labelled, put in one order and split."""
