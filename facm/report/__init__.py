"""One HTML page about a run, or about several: scores, curves, images, params, where they come from.

`stages/report.py` writes it for the run in the workspace, `python -m facm.report REV ...` compares revisions and
experiments. A page loads nothing from elsewhere: images, style and charts are in it. The same inputs give the same
bytes, so it names no time, machine or path.
"""
