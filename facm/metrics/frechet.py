"""Mean and covariance of features that come part by part, and the Fréchet distance between two of them.

|mu1 - mu2|^2 + tr(S1 + S2 - 2 (S1 S2)^1/2) (Heusel et al. 2017), float64 throughout. The trace of the root is the sum
of the roots of the eigenvalues of S1 S2, as torch-fidelity takes it; scipy's sqrtm, which published code uses, may
return NaN. With fewer samples than features S is singular: eigenvalues that should be 0 come out as +-1e-16 of the
largest, and the real part of their roots is taken. The distance is finite then, but biased upwards by the few samples.
"""

import numpy as np
import torch
from torch import Tensor

CHUNK = 10_000  # rows whose mean and covariance are taken at once

Statistics = tuple[np.ndarray, np.ndarray]
"""Mean (D,) and covariance (D, D), float64."""


class Gathered:
    """Mean and covariance of rows that come in parts of any size, without keeping them.

    Rows are reduced in chunks of CHUNK, whatever the parts, and the chunks are merged in their order (Chan, Golub and
    LeVeque 1979), so that the same rows in the same order give the same bits. One chunk is what `statistics` returns.
    """

    def __init__(self) -> None:
        self.num = 0
        self._waiting: list[Tensor] = []
        self._rows = 0
        self._merged: Statistics | None = None

    def add(self, features: Tensor) -> None:
        """Take in the next rows, (B, D)."""
        self._waiting.append(features)
        self._rows += len(features)
        while self._rows >= CHUNK:
            rows = torch.cat(self._waiting)
            self._reduce(rows[:CHUNK])
            self._waiting = [rows[CHUNK:].clone()]
            self._rows = len(self._waiting[0])

    def statistics(self) -> Statistics:
        """Mean and covariance of all rows so far, of which there must be two.

        Raises:
            ValueError: fewer.
        """
        if self._rows:
            self._reduce(torch.cat(self._waiting))
            self._waiting, self._rows = [], 0
        if self._merged is None or self.num < 2:
            raise ValueError(f"a covariance needs at least 2 pictures, got {self.num}: set their number higher")
        return self._merged

    def _reduce(self, rows: Tensor) -> None:
        """Merge the next chunk, (B, D)."""
        mu, sigma = statistics(rows) if len(rows) > 1 else (rows[0].double().numpy(), np.zeros((rows.shape[1],) * 2))
        a, b = self.num, len(rows)
        self.num = a + b
        if self._merged is None:
            self._merged = mu, sigma
            return
        mu_a, sigma_a = self._merged
        d = mu - mu_a
        scatter = (a - 1) * sigma_a + (b - 1) * sigma + a * b / (a + b) * np.outer(d, d)
        self._merged = mu_a + b / (a + b) * d, scatter / (a + b - 1)


def statistics(features: Tensor) -> Statistics:
    """Features (N, D) -> mean (D,) and unbiased covariance (D, D), float64."""
    from torch_fidelity.metric_fid import fid_features_to_statistics

    result = fid_features_to_statistics(features.double())
    return result["mu"], result["sigma"]


def frechet_distance(one: Statistics, two: Statistics) -> float:
    """|mu1 - mu2|^2 + tr(S1 + S2 - 2 (S1 S2)^1/2) of two pairs (mu (D,), S (D, D)), float64."""
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric

    stats = [{"mu": np.asarray(mu, np.float64), "sigma": np.asarray(sigma, np.float64)} for mu, sigma in (one, two)]
    return float(fid_statistics_to_metric(*stats, verbose=False)[KEY_METRIC_FID])
