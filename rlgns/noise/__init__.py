"""Estimators of |G|², tr Σ and the noise scale from the gradients of independent groups, in NumPy and SciPy alone."""
