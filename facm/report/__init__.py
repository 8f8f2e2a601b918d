"""One HTML page about a run, or about several: scores, curves, pictures, params, where they come from.

`stages/report.py` writes it for the run in the workspace, `python -m facm.report REV ...` compares revisions and
experiments. A page asks for nothing from elsewhere: pictures, style and plots are in it. The same inputs give the same
bytes, so nothing of the moment (time, machine, path) is in it.
"""
