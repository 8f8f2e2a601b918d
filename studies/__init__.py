"""Studies: the paper's tables and figures as DVC experiments, `python -m studies NAME`."""
