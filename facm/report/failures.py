"""The samples in which a classifier sees least of the class that was asked for."""

from collections.abc import Sequence

import torch

from facm.data.images.images import kind
from facm.report.images import strip
from facm.report.run import Group, Run
from facm.report.tags import Html, figure, join, tag
from facm.report.view import FAILED, View, nfes

LOOKED = 2000  # samples per NFE that the classifier looks at


def section(groups: Sequence[Group], view: View) -> Html:
    """A block per group."""
    return view.pictured(groups, lambda run: _group(run, view))


def worst(logits: torch.Tensor, labels: torch.Tensor, num: int) -> list[tuple[int, int, int, float]]:
    """The samples of least confidence in the class asked for.

    Args:
        logits: (N, classes).
        labels: (N,) classes asked for.
        num: at most.

    Returns:
        Sample, class asked for, class seen, confidence in [0, 1]; least confident first.
    """
    confidence = logits.double().softmax(1).gather(1, labels[:, None])[:, 0]
    order = confidence.argsort(stable=True)[:num]
    seen = logits.argmax(1)
    return [(int(i), int(labels[i]), int(seen[i]), float(confidence[i])) for i in order]


def _group(run: Run, view: View) -> Html:
    samples = run.samples(run.nfes[0])
    if samples is None:
        return tag("p", "The samples are not at hand.")
    images, labels = samples
    if labels is None or kind(images.dtype, images.shape) == "points":
        return tag("p", "There are no classes: no picture can be of a wrong one.")
    network = run.network
    if network is None:
        return tag("p", "The feature network is not at hand.")
    if network.classify(torch.zeros(1, network.widths["features"])) is None:
        return tag("p", f"{network.name} knows no classes of this data set: nobody can tell a wrong one.")
    parts = []
    for nfe in nfes(run):
        found = run.samples(nfe)
        if found is None or found[1] is None:
            continue
        looked, asked = found[0][:LOOKED], torch.from_numpy(found[1][:LOOKED])
        logits = network.classify(network.extract(looked))
        if logits is None:
            continue
        wrong = float((logits.argmax(1) != asked).double().mean())
        cards = [_card(looked[i].numpy(), one, view) for one in worst(logits, asked, FAILED) for i in one[:1]]
        title = f"NFE {nfe}: {wrong:.1%} of the first {len(looked)} look like another class"
        parts += [view.heading(title), tag("div", *cards, class_="cards pictures")]
    words = f"Least confident first, as {network.name} sees them; p is its confidence in the class that was asked for."
    return join(tag("p", words), *parts)


def _card(image: object, one: tuple[int, int, int, float], view: View) -> Html:
    number, asked, seen, confidence = one
    as_seen = "seen as well" if seen == asked else f"seen {seen}"
    alt = f"Sample {number}, asked for class {asked}, {as_seen}"
    caption = join(f"asked {asked}", tag("br"), as_seen, tag("br"), f"p {confidence:.2g}")
    return figure(strip(image[None], alt, view.side), caption)  # type: ignore[index]
