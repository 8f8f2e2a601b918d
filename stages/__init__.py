"""The pipeline's stages, run by dvc.yaml: each reads params, builds, calls one function and writes."""
