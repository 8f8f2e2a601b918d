"""`python -m facm.export`: a checkpoint as a folder to use and to share."""
