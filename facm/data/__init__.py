"""Datasets, codecs, images and latents."""
