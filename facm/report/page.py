"""The page: its head, a section per subject, and what could not be shown."""

from collections.abc import Callable, Sequence

from facm.report import changes, distance, failures, near, provenance, same, scores, training
from facm.report.run import Group
from facm.report.spread import differing, seedless
from facm.report.style import STYLE
from facm.report.tags import Html, join, tag
from facm.report.view import View
from facm.runtime.log import say

Section = Callable[[Sequence[Group], View], Html]
SECTIONS: tuple[tuple[str, str, Section], ...] = (
    ("scores", "Scores", scores.section),
    ("distance", "Distance over NFE", distance.section),
    ("noise", "The same noise", same.section),
    ("training", "Training", training.section),
    ("nearest", "Nearest training pictures", near.section),
    ("failures", "Failures", failures.section),
    ("params", "Params", changes.section),
    ("provenance", "Where it comes from", provenance.section),
)
TOLD = 3  # params in a group's name
EXPECTED = (ValueError, OSError, RuntimeError, LookupError, TypeError, ArithmeticError)


def page(groups: Sequence[Group]) -> str:
    """The HTML of runs that differ by more than their seeds, by group.

    A section that fails says so in its place and in the log: what it would have shown is lost, a finished run's
    scores, of which this page is only a view, are not.

    Args:
        groups: at least one.
    """
    view = View.of(groups)
    made = [(name, title, guarded(section, groups, view, title)) for name, title, section in SECTIONS]
    links = [tag("li", tag("a", title, href=f"#{name}")) for name, title, _ in made]
    heading = title_of(groups)
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", heading),
        tag("style", Html(STYLE)),
    )
    body = tag(
        "body",
        tag("header", tag("h1", heading), *_about(groups, view), tag("nav", tag("ul", *links), aria_label="Sections")),
        tag(
            "main",
            *(
                tag("section", tag("h2", title, id=f"{name}-title"), content, id=name, aria_labelledby=f"{name}-title")
                for name, title, content in made
            ),
        ),
        tag("footer", tag("p", "Written by facm.report; nothing on this page is loaded from elsewhere.")),
    )
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"


def guarded(section: Section, groups: Sequence[Group], view: View, title: str) -> Html:
    """A section, or the reason why there is none."""
    try:
        return section(groups, view)
    except EXPECTED as error:
        say(f"report: {title} could not be shown: {type(error).__name__}: {error}")
        return tag("p", f"This could not be shown: {type(error).__name__}: {error}", class_="note")


def title_of(groups: Sequence[Group]) -> str:
    """Data, method and NFEs of one group, or the names of several."""
    params = groups[0].runs[0].params
    data = params["data"]["name"]
    if len(groups) > 1:
        return f"{data}: {sum(len(group.runs) for group in groups)} runs compared"
    nfes = ", ".join(map(str, groups[0].runs[0].nfes))
    runs = f", {len(groups[0].runs)} seeds" if len(groups[0].runs) > 1 else ""
    return f"{data}: {params['distill']['objective']} at NFE {nfes}{runs}"


def _named(group: Group, number: int, groups: Sequence[Group], view: View) -> list[str]:
    """A group's letter and runs, and the first of what tells it from the first group."""
    head = f"{view.letters[number]}: {group.name} (n = {len(group.runs)})"
    if number == 0:
        return [head]
    first, own = (seedless(one.runs[0].used) for one in (groups[0], group))
    names = sorted(differing([first, own]), key=lambda name: (name not in first or name not in own, name))
    told = ", ".join(f"{name} {own.get(name, '–')}" for name in names[:TOLD])
    more = f" and {len(names) - TOLD} more" if len(names) > TOLD else ""
    return [head, f": {told}{more}" if told else f": the params of {view.letters[0]}, but other code"]


def _about(groups: Sequence[Group], view: View) -> list[Html]:
    """The headline, the names of the groups, and what is not at hand."""
    parts = [scores.headline(groups)]
    if len(groups) == 1 < len(groups[0].runs):
        parts.append(tag("p", f"{len(groups[0].runs)} runs that differ by their seeds only: {groups[0].name}."))
    if len(groups) > 1:
        parts.append(tag("ul", *(tag("li", *_named(group, i, groups, view)) for i, group in enumerate(groups))))
    for group in groups:
        for run in group.runs:
            if missing := run.origin.missing():
                words = f"{run.name}: not in this cache, and left out here: {', '.join(missing)}. "
                words += "Where a remote has them, dvc exp pull, or dvc fetch --all-branches --all-tags, brings them."
                parts.append(tag("p", words, class_="note"))
    return [join(*parts)]
