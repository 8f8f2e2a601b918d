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
ROUNDING = 1e-4
"""Share of a covariance's norm that rounding may add to it, measured at D 2048 with 500 samples: eigenvalues that
should be 0 are -3e-16 of the norm from sums in float64, -3e-7 from sums in float32, -1e-9 where the file holds float32,
-1e-5 where it holds float16. What lies beyond is no rounding."""

Statistics = tuple[np.ndarray, np.ndarray]
"""Mean (D,) and covariance (D, D), float64."""


class RunningMoments:
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
        """Add the next rows, (B, D)."""
        self._waiting.append(features)
        self._rows += len(features)
        while self._rows >= CHUNK:
            rows = torch.cat(self._waiting)
            self._reduce(rows[:CHUNK])
            self._waiting = [rows[CHUNK:].clone()]
            self._rows = len(self._waiting[0])

    def statistics(self) -> Statistics:
        """Mean and covariance of all rows so far; ValueError for fewer than two."""
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


def refuse_no_statistics(mu: np.ndarray, sigma: np.ndarray) -> None:
    """Raise ValueError unless these can be a mean (D,) and a covariance (D, D) of numbers that differ, up to ROUNDING.

    A distance to what is none would be a number all the same, 0 for example.
    """
    if mu.ndim != 1 or not mu.size or sigma.shape != (len(mu), len(mu)):
        raise ValueError(f"a mean of {mu.shape} and a covariance of {sigma.shape} must be (D,) and (D, D)")
    if mu.dtype.kind not in "fiu" or sigma.dtype.kind not in "fiu":
        raise ValueError(f"a mean of {mu.dtype} and a covariance of {sigma.dtype} must be real numbers")
    sigma = sigma.astype(np.float64)
    norm = float(np.linalg.norm(sigma))  # Frobenius: at least the largest eigenvalue
    if not (np.isfinite(mu).all() and np.isfinite(norm)):
        raise ValueError("a mean or covariance that is not finite")
    if norm == 0:
        raise ValueError("a covariance of zeros: all samples would be the same")
    apart = float(np.abs(sigma - sigma.T).max())
    if apart > ROUNDING * norm:
        raise ValueError(f"a covariance that is not symmetric: entries differ from their mirror by up to {apart:.3g}")
    try:
        np.linalg.cholesky(sigma + ROUNDING * norm * np.eye(len(sigma)))  # ten times as fast as the eigenvalues
    except np.linalg.LinAlgError:
        low, high = np.linalg.eigvalsh(sigma)[[0, -1]]
        raise ValueError(f"no covariance: its eigenvalues go from {low:.3g} to {high:.3g}, below 0") from None


def frechet_distance(one: Statistics, two: Statistics) -> float:
    """|mu1 - mu2|^2 + tr(S1 + S2 - 2 (S1 S2)^1/2) of two pairs (mu (D,), S (D, D)), float64."""
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric

    stats = [{"mu": np.asarray(mu, np.float64), "sigma": np.asarray(sigma, np.float64)} for mu, sigma in (one, two)]
    return float(fid_statistics_to_metric(*stats, verbose=False)[KEY_METRIC_FID])
