"""Latents: the store, its statistics, what encodes images."""
