"""Curves of both trainings, a small chart per metric, all runs in it."""

from collections.abc import Sequence

from markupsafe import Markup

from facm.report.html import render
from facm.report.run import Curve, Group
from facm.report.svg import Line, chart, legend, spans
from facm.report.view import View

ORDER = ("loss", "grad_norm", "velocity_error", "g", "tangent", "lr")
MEANINGS = {
    "loss_fm": "flow matching, mean of the interval",
    "loss_cm": "consistency, mean of the interval",
    "grad_norm": "before clipping, mean of the interval",
    "grad_norm_max": "before clipping, largest of the interval",
    "velocity_error": "root mean square distance of the network's velocity from its target",
    "g": "residual, root mean square",
    "tangent": "dF/dt along the path, root mean square",
    "lr": "learning rate",
}
HIDDEN = ("skipped",)  # shown only where a step was skipped

Curves = Sequence[tuple[int, Group, dict[str, dict[str, Curve]]]]


def section(groups: Sequence[Group], view: View) -> Markup:
    """Charts of the teacher's and the student's training."""
    runs = [run for group in groups for run in group.runs]
    curves = [(i, group, run.curves()) for i, group in enumerate(groups) for run in group.runs]
    scratch = all(run.scratch for run in runs)
    trainings = []
    for who in ("teacher", "student"):
        names = {name for _, _, of_run in curves for name in of_run.get(who, {})}
        shown = sorted((n for n in names if n not in HIDDEN or _varies(curves, who, n)), key=_order)
        absent = f"There are no curves of the {who}: it was imported, or they are not available."
        if who == "teacher" and scratch:
            absent = "Trained from scratch: there is no teacher, hence no curves of one."
        elif who == "teacher":
            absent = next((run.apart for run in runs if run.apart), absent)
        trainings.append((who, [_panel(who, name, curves, view) for name in shown], absent))
    lines = [Line(view.legend(i, group), (), i) for i, group in enumerate(groups)]
    return render(
        "training.html",
        trainings=trainings,
        legend=legend(lines) if len(groups) > 1 else "",
        stopped=[(run.name, run.result.get("diverged_at")) for run in runs if run.result.get("stable") is False],
    )


def _panel(who: str, name: str, curves: Curves, view: View) -> tuple[str, str, Markup]:
    lines = [
        Line(view.legend(i, group), tuple((s, v, 0.0) for s, v in zip(c.steps, c.values, strict=True)), i)
        for i, group, of_run in curves
        if (c := of_run.get(who, {}).get(name)) is not None
    ]
    title = f"{name} of the {who}'s training over its steps"
    return name, MEANINGS.get(name, ""), chart(title, lines, x_label="step", linear=name == "lr")


def _varies(curves: Curves, who: str, name: str) -> bool:
    return any(spans((0.0, *of_run[who][name].values)) for _, _, of_run in curves if name in of_run.get(who, {}))


def _order(name: str) -> tuple[int, str]:
    return next((i for i, start in enumerate(ORDER) if name == start or name.startswith(f"{start}_")), len(ORDER)), name
