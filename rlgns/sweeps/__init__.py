"""Sweeps: the runs that a W&B sweep file asks for, and the launcher that starts them."""
