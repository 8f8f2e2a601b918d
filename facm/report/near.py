"""Samples beside the training pictures that are nearest to them, in pixels: has anything been learnt by heart?"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from facm.data.images.images import kind
from facm.report.images import strip
from facm.report.run import Group, Run
from facm.report.spread import number
from facm.report.tags import Html, figure, join, tag
from facm.report.view import NEAR, View
from facm.runtime import dist

LOOKED = 500  # samples whose neighbours are looked for
VALUES = 2**23  # pixel values of train pictures in float64 at once: 64 MiB
LEVELS_PER_UNIT = 127.5  # as in facm/metrics/copies.py


def section(groups: Sequence[Group], view: View) -> Html:
    """A block per group."""
    return view.pictured(groups, lambda run: _group(run, view))


def nearest(images: Tensor, pictures: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest of the train pictures, by L2 distance of pixels in [-1, 1].

    Args:
        images: uint8 (N, H, W, C).
        pictures: uint8 (M, H, W, C).

    Returns:
        Distances, float64 (N,), and indices, int64 (N,), on the CPU; of equally near ones the first.
    """
    device = dist.device()
    a = images.to(device).flatten(1).double()
    squares = a.square().sum(1, keepdim=True)
    least = torch.full((len(a),), torch.inf, dtype=torch.float64, device=device)
    index = torch.zeros(len(a), dtype=torch.int64, device=device)
    size = max(1, VALUES // a.shape[1])
    for first in range(0, len(pictures), size):
        b = pictures[first : first + size].to(device).flatten(1).double()
        found, place = (squares + b.square().sum(1) - 2 * a @ b.T).min(1)  # whole numbers: exact
        nearer = found < least
        least, index = torch.where(nearer, found, least), torch.where(nearer, place + first, index)
    return least.sqrt().cpu() / LEVELS_PER_UNIT, index.cpu()


def _group(run: Run, view: View) -> Html:
    nfe = run.nfes[0]
    samples = run.samples(nfe)
    if samples is None:
        return tag("p", "The samples are not at hand.")
    images, labels = samples
    if kind(images.dtype, images.shape) == "points":
        return tag("p", "Points are not compared with those trained on.")
    found = run.train_pictures()
    if found is None:
        return tag("p", "The training pictures are not at hand: data/reference keeps up to 1 GiB of them.")
    pictures, threshold = found
    looked = images[:LOOKED]
    if looked.shape[1:] != pictures.shape[1:]:
        return tag("p", f"Samples {tuple(looked.shape[1:])} and training pictures {tuple(pictures.shape[1:])} differ.")
    distances, indices = nearest(looked, pictures)
    first = list(range(min(NEAR // 2, len(looked))))
    closest = distances.argsort(stable=True)[: NEAR // 2].tolist()

    def pairs(chosen: list[int]) -> Html:
        return tag(
            "div", *(_pair(i, looked, pictures, distances, indices, labels, view) for i in chosen), class_="pairs"
        )

    copies = int((distances <= threshold).sum())
    return join(
        tag(
            "p",
            f"NFE {nfe}: each sample on the left, the training picture nearest to it, in pixels, on the right. Within "
            f"{number(threshold)} a sample counts as a copy (1 of 100 training pictures is as near to another one): "
            f"{copies} of the first {len(looked)}.",
        ),
        view.heading("The first ones"),
        pairs(first),
        view.heading(f"The nearest of the first {len(looked)}"),
        pairs(closest),
    )


def _pair(
    i: int,
    images: Tensor,
    pictures: Tensor,
    distances: Tensor,
    indices: Tensor,
    labels: np.ndarray | None,
    view: View,
) -> Html:
    both = torch.stack([images[i], pictures[indices[i]]]).numpy()
    asked = "" if labels is None else f", class {labels[i]}"
    alt = f"Sample {i}{asked}, and training picture {int(indices[i])}"
    return figure(strip(both, alt, view.side), number(float(distances[i])))
