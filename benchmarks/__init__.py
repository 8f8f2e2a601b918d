"""Benchmarks of the training step; README.md says how to run them and how to read them."""
