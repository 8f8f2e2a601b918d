"""The page: its head, a section per subject, and what could not be shown."""

from collections.abc import Callable, Sequence

from jinja2 import TemplateError
from markupsafe import Markup

from facm.report import images, provenance, scores, training
from facm.report.html import render
from facm.report.run import Group, differing, seedless
from facm.report.view import View
from facm.runtime.log import say

Section = Callable[[Sequence[Group], View], Markup]
SECTIONS: tuple[tuple[str, str, Section], ...] = (
    ("scores", "Scores", scores.section),
    ("distance", "Distance over NFE", scores.distance),
    ("noise", "The same noise", images.same_noise),
    ("training", "Training", training.section),
    ("nearest", "Nearest training images", images.nearest_training),
    ("failures", "Failures", images.failures),
    ("params", "Params", provenance.params),
    ("provenance", "Where it comes from", provenance.section),
)
NAMED = 3  # params in a group's name
EXPECTED = (ValueError, OSError, RuntimeError, LookupError, TypeError, ArithmeticError, TemplateError)


def page(groups: Sequence[Group]) -> str:
    """The HTML of runs that differ by more than their seeds, by group.

    A section that fails is a note in its place and a line in the log: the page is only a view of a finished run,
    whose scores are not lost.

    Args:
        groups: at least one.
    """
    view = View.of(groups)
    return render(
        "page.html",
        title=title_of(groups),
        groups=groups,
        cards=scores.headline(groups),
        names=[name_of(group, i, groups, view) for i, group in enumerate(groups)],
        sections=[(name, title, guarded(section, groups, view, title)) for name, title, section in SECTIONS],
    )


def guarded(section: Section, groups: Sequence[Group], view: View, title: str) -> Markup:
    """A section, or the reason why there is none."""
    try:
        return section(groups, view)
    except EXPECTED as error:
        reason = f"{type(error).__name__}: {error}"
        say(f"report: {title} could not be shown: {reason}")
        return Markup('<p class="note">This could not be shown: {}</p>').format(reason)


def title_of(groups: Sequence[Group]) -> str:
    """Data, method and NFEs of one group, or the number of runs of several."""
    params = groups[0].runs[0].params
    data = params["data"]["name"]
    if len(groups) > 1:
        return f"{data}: {sum(len(group.runs) for group in groups)} runs compared"
    nfes = ", ".join(map(str, groups[0].runs[0].nfes))
    runs = f", {len(groups[0].runs)} seeds" if len(groups[0].runs) > 1 else ""
    return f"{data}: {params['distill']['objective']} at NFE {nfes}{runs}"


def name_of(group: Group, number: int, groups: Sequence[Group], view: View) -> str:
    """A group's letter, its runs, and the first params in which it differs from the first group."""
    head = f"{view.letters[number]}: {group.name} (n = {len(group.runs)})"
    if number == 0:
        return head
    first, own = (seedless(one.runs[0].used) for one in (groups[0], group))
    names = sorted(differing([first, own]), key=lambda name: (name not in first or name not in own, name))
    if not names:
        return f"{head}: the params of {view.letters[0]}, but other code"
    shown = ", ".join(f"{name} {own.get(name, '–')}" for name in names[:NAMED])
    return f"{head}: {shown}" + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
