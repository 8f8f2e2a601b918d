"""Curves of both trainings, a small chart per figure, all runs in it."""

from collections.abc import Sequence

from facm.report.chart import Line, chart, legend, spans
from facm.report.run import Curve, Group
from facm.report.tags import Html, figure, join, tag
from facm.report.view import View

ORDER = ("loss", "grad_norm", "velocity_error", "g", "tangent", "lr")
WORDS = {
    "loss_fm": "flow matching, mean of the interval",
    "loss_cm": "consistency, mean of the interval",
    "grad_norm": "before clipping, mean of the interval",
    "grad_norm_max": "before clipping, largest of the interval",
    "velocity_error": "root mean square distance of the network's velocity from its target",
    "g": "residual, root mean square",
    "tangent": "dF/dt along the path, root mean square",
    "lr": "learning rate",
}
SILENT = ("skipped",)  # shown where a step was skipped only


def section(groups: Sequence[Group], view: View) -> Html:
    """Charts of the teacher's and the student's training."""
    found = [(i, group, run.curves()) for i, group in enumerate(groups) for run in group.runs]
    parts, scratch = list[Html](), all(run.scratch for group in groups for run in group.runs)
    for who in ("teacher", "student"):
        names = {name for _, _, curves in found for name in curves.get(who, {})}
        shown = sorted((name for name in names if name not in SILENT or _skipped(found, who, name)), key=_order)
        if not shown:
            if who == "student" or not scratch:
                apart = next(
                    (run.apart for group in groups for run in group.runs if who == "teacher" and run.apart), ""
                )
                absent = f"There are no curves of the {who}: it was imported, or they are not at hand."
                parts.append(tag("p", apart or absent))
            continue
        panels = [_panel(who, name, found, view) for name in shown]
        parts += [tag("h3", f"The {who}'s training"), tag("div", *panels, class_="panels")]
    for group in groups:
        for run in group.runs:
            if run.result.get("stable") is False:
                step = run.result.get("diverged_at")
                parts.insert(
                    0, tag("p", f"{run.name}: the student's training was given up at step {step}.", class_="note")
                )
    if scratch:
        parts.append(tag("p", "Trained from scratch: there is no teacher, hence no curves of one."))
    if len(groups) > 1:
        lines = [Line(view.legend(i, group), (), i) for i, group in enumerate(groups)]
        parts.insert(0, legend(lines))
    return join(*parts)


Found = Sequence[tuple[int, Group, dict[str, dict[str, Curve]]]]


def _panel(who: str, name: str, found: Found, view: View) -> Html:
    lines = [
        Line(view.legend(i, group), tuple((s, v, 0.0) for s, v in zip(c.steps, c.values, strict=True)), i)
        for i, group, curves in found
        if (c := curves.get(who, {}).get(name)) is not None
    ]
    drawn = chart(f"{name} of the {who}'s training over its steps", lines, x_label="step", linear=name == "lr")
    words = WORDS.get(name)
    return figure(drawn, join(tag("b", name), f": {words}" if words else ""))


def _skipped(found: Found, who: str, name: str) -> bool:
    return any(spans((0.0, *curves[who][name].values)) for _, _, curves in found if name in curves.get(who, {}))


def _order(name: str) -> tuple[int, str]:
    return next((i for i, start in enumerate(ORDER) if name == start or name.startswith(f"{start}_")), len(ORDER)), name
