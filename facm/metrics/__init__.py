"""Scores of samples, and what they are compared with."""
