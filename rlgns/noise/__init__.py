"""What gradients say about |G|², tr Σ and their ratio, in NumPy and SciPy alone."""
