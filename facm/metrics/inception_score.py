"""Inception Score (Salimans et al. 2016) of logits that come part by part.

exp of the mean of KL(p(y|x) || p(y)) over one of 10 equal parts, and the mean over the parts, as torch-fidelity has it:
rows are dealt to the parts by its seeded shuffle, softmax and sums are float64. ADM's evaluator takes the parts in the
order of the samples instead, which differs by the noise of the split.
"""

import numpy as np
import torch
from torch import Tensor

PARTS = 10
SEED = 2020  # of torch-fidelity's shuffle


class InceptionScore:
    """The score of `num` images, at least PARTS, of whose logits only sums per part are kept."""

    def __init__(self, num: int):
        ends = [i * num // PARTS for i in range(1, PARTS)]
        dealt = np.searchsorted(ends, np.arange(num), side="right")
        parts = np.empty(num, np.int64)
        parts[np.random.RandomState(SEED).permutation(num)] = dealt
        self.parts, self.taken = torch.from_numpy(parts), 0
        self.p: Tensor | None = None  # sums of p(y|x), (PARTS, classes)
        self.negentropy = torch.zeros(PARTS, dtype=torch.float64)  # sums of p log p

    def add(self, logits: Tensor) -> None:
        """Add the logits of the next images, (B, classes)."""
        part = self.parts[self.taken : self.taken + len(logits)]
        self.taken += len(logits)
        log_p = logits.double().log_softmax(1)
        p = log_p.exp()
        if self.p is None:
            self.p = torch.zeros(PARTS, p.shape[1], dtype=torch.float64)
        self.p.index_add_(0, part, p)
        self.negentropy.index_add_(0, part, (p * log_p).sum(1))

    def value(self) -> float:
        """The score; ValueError unless all images have come."""
        if self.p is None or self.taken != len(self.parts):
            raise ValueError(f"logits of {self.taken} of {len(self.parts)} pictures have come")
        num = self.parts.bincount(minlength=PARTS).double()
        q = self.p / num[:, None]
        return float((self.negentropy / num - torch.xlogy(q, q).sum(1)).exp().mean())
