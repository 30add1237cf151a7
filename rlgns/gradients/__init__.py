"""The gradients of independent groups of one batch, in torch."""
