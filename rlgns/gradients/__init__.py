"""Gradients of the independent groups of one batch, and their inner products, in torch."""
