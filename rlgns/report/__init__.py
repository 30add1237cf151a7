"""Figures and pages for a person to read."""
