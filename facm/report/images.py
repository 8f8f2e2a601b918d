"""Samples to look at: of the same noise, beside their nearest training images, and of the wrong class."""

from collections.abc import Sequence

import numpy as np
import torch
from markupsafe import Markup
from torch import Tensor

from facm.data.images.images import kind
from facm.inference.samples import Stored
from facm.report.html import paragraph, render
from facm.report.run import Group, Run, number
from facm.report.svg import reach, scatter
from facm.report.view import COLUMNS, FAILURES, GROUPS, NEAREST, View, nfes, strip
from facm.runtime import dist

COMPARED = 500  # samples whose nearest training images are searched
CLASSIFIED = 2000  # samples per NFE
VALUES = 2**23  # pixel values of training images in float64 at once: 64 MiB
LEVELS_PER_UNIT = 127.5  # as in facm/metrics/copies.py

Found = list[tuple[str, Stored, np.ndarray | None]]  # name, samples, labels


# The same noise


def same_noise(groups: Sequence[Group], view: View) -> Markup:
    """The same noise through the teacher and the student at each NFE: images in columns, points as plots."""
    blocks = view.per_group(groups, lambda run: _same_noise(run, view))
    return blocks + (paragraph(f"Images of the first {GROUPS} groups only.") if len(groups) > GROUPS else "")


def shared_noise(run: Run) -> bool:
    """Whether sample i of teacher and student come from one noise: it depends on seed and i only."""
    return bool(run.params["baseline"]["seed"] == run.params["sample"]["seed"])


def _same_noise(run: Run, view: View) -> Markup:
    teacher = run.samples(None)
    found: Found = []
    if teacher is not None and shared_noise(run):
        found.append((f"teacher, NFE {run.result.get('teacher', {}).get('nfe', 'unknown')}", *teacher))
    students = ((f"student, NFE {nfe}", run.samples(nfe)) for nfe in nfes(run))
    found += [(name, *samples) for name, samples in students if samples is not None]
    if not found:
        return paragraph("The samples are not available.")
    _, first, labels = found[0]
    points = kind(first.dtype, first.shape) == "points"
    return render(
        "same_noise.html",
        run=run,
        shared=shared_noise(run),
        plots=_plots(found) if points else [],
        blocks=[] if points else _strips(found, labels, view),
        classes=None if labels is None else _listed(labels[:COLUMNS]),
    )


def _strips(found: Found, labels: np.ndarray | None, view: View) -> list[list[tuple[str, Markup]]]:
    """Per block of columns a strip of each network's images, with its name."""
    num = min(len(images) for _, images, _ in found)
    blocks = []
    for first in range(0, min(view.blocks * COLUMNS, num), COLUMNS):
        end = min(first + COLUMNS, num)
        what = f"samples {first} to {end - 1}" + ("" if labels is None else f", classes {_listed(labels[first:end])}")
        blocks.append(
            [(name, strip(images[first:end].numpy(), f"{name}: {what}", view.side)) for name, images, _ in found]
        )
    return blocks


def _plots(found: Found) -> list[tuple[str, Markup]]:
    sets = [np.asarray(points) for _, points, _ in found]
    limit = reach(sets)
    start = sets[0] if found[0][0].startswith("teacher") and len(found) > 1 else None
    return [
        (name, scatter(f"{name}: points of the plane", points, limit, start if i else None))
        for i, ((name, *_), points) in enumerate(zip(found, sets, strict=True))
    ]


def _listed(labels: np.ndarray) -> str:
    return ", ".join(map(str, labels.tolist()))


# The nearest training images


def nearest_training(groups: Sequence[Group], view: View) -> Markup:
    """Samples beside their nearest training images, in pixels: did the network memorize them?"""
    return view.per_group(groups, lambda run: _nearest(run, view))


def nearest(images: Tensor, training: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest training image by L2 distance of pixels in [-1, 1].

    Args:
        images: uint8 (N, H, W, C).
        training: uint8 (M, H, W, C).

    Returns:
        Distances, float64 (N,), and indices, int64 (N,), on the CPU; of equally near ones the first.
    """
    device = dist.device()
    a = images.to(device).flatten(1).double()
    squares = a.square().sum(1, keepdim=True)
    least = torch.full((len(a),), torch.inf, dtype=torch.float64, device=device)
    index = torch.zeros(len(a), dtype=torch.int64, device=device)
    size = max(1, VALUES // a.shape[1])
    for first in range(0, len(training), size):
        b = training[first : first + size].to(device).flatten(1).double()
        found, place = (squares + b.square().sum(1) - 2 * a @ b.T).min(1)  # whole numbers: exact
        nearer = found < least
        least, index = torch.where(nearer, found, least), torch.where(nearer, place + first, index)
    return least.sqrt().cpu() / LEVELS_PER_UNIT, index.cpu()


def _nearest(run: Run, view: View) -> Markup:
    nfe = run.nfes[0]
    samples = run.samples(nfe)
    if samples is None:
        return paragraph("The samples are not available.")
    stored, labels = samples
    if kind(stored.dtype, stored.shape) == "points":
        return paragraph("Points are not compared with the training points.")
    found = run.train_images()
    if found is None:
        return paragraph("The training images are not available: data/reference keeps up to 1 GiB of them.")
    training, threshold = found
    images = stored[:COMPARED]
    if images.shape[1:] != training.shape[1:]:
        shapes = tuple(images.shape[1:]), tuple(training.shape[1:])
        return paragraph(f"Samples {shapes[0]} and training images {shapes[1]} differ in shape.")
    distances, indices = nearest(images, training)

    def pair(i: int) -> tuple[Markup, str]:
        both = torch.stack([images[i], training[indices[i]]]).numpy()
        of_class = "" if labels is None else f", class {labels[i]}"
        alt = f"Sample {i}{of_class}, and training image {int(indices[i])}"
        return strip(both, alt, view.side), number(float(distances[i]))

    return render(
        "nearest.html",
        nfe=nfe,
        num=len(images),
        threshold=number(threshold),
        copies=int((distances <= threshold).sum()),
        heading=view.heading,
        first=[pair(i) for i in range(min(NEAREST // 2, len(images)))],
        nearest=[pair(i) for i in distances.argsort(stable=True)[: NEAREST // 2].tolist()],
    )


# Failures


def failures(groups: Sequence[Group], view: View) -> Markup:
    """The samples in which a classifier is least confident of the requested class."""
    return view.per_group(groups, lambda run: _failures(run, view))


def least_confident(logits: Tensor, labels: Tensor, num: int) -> list[tuple[int, int, int, float]]:
    """The samples of least confidence in the requested class.

    Args:
        logits: (N, classes).
        labels: (N,) requested classes.
        num: at most.

    Returns:
        Sample, requested class, most likely class, confidence in [0, 1]; least confident first.
    """
    confidence = logits.double().softmax(1).gather(1, labels[:, None])[:, 0]
    likely = logits.argmax(1)
    order = confidence.argsort(stable=True)[:num].tolist()
    return [(i, int(labels[i]), int(likely[i]), float(confidence[i])) for i in order]


def _failures(run: Run, view: View) -> Markup:
    samples = run.samples(run.nfes[0])
    if samples is None:
        return paragraph("The samples are not available.")
    stored, labels = samples
    if labels is None or kind(stored.dtype, stored.shape) == "points":
        return paragraph("There are no classes, so no sample can be of a wrong one.")
    network = run.network
    if network is None:
        return paragraph("The feature network is not available.")
    if network.classify(torch.zeros(1, network.widths["features"])) is None:
        return paragraph(f"{network.name} does not classify this data set, so it cannot find samples of a wrong class.")
    found = []
    for nfe in nfes(run):
        samples = run.samples(nfe)
        if samples is None or samples[1] is None:
            continue
        images, requested = samples[0][:CLASSIFIED], torch.from_numpy(samples[1][:CLASSIFIED])
        logits = network.classify(network.extract(images))
        if logits is not None:
            wrong = float((logits.argmax(1) != requested).double().mean())
            cards = [_card(images, one, view.side) for one in least_confident(logits, requested, FAILURES)]
            found.append((nfe, f"{wrong:.1%}", len(images), cards))
    return render("failures.html", classifier=network.name, heading=view.heading, found=found)


def _card(images: Tensor, one: tuple[int, int, int, float], side: int) -> tuple[Markup, int, int, str]:
    i, requested, likely, confidence = one
    alt = f"Sample {i}, requested class {requested}, seen as {likely}"
    return strip(images[i][None].numpy(), alt, side), requested, likely, f"{confidence:.2g}"
