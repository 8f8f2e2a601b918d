"""Images with their labels, or points, as a split of a dataset holds them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Union

import torch
from torch import Tensor

if TYPE_CHECKING:
    from facm.data.images.files import Files

KINDS = {("uint8", 4): "pictures", ("float32", 2): "points"}  # of samples, by type and number of axes


@dataclass(frozen=True)
class Images:
    """Images with labels, or points.

    Attributes:
        images: uint8 (N, H, W, C), or of points float32 (N, D); a tensor, or files that are decoded when they are
            indexed.
    """

    images: Union[Tensor, "Files"]
    labels: Tensor | None  # int64 (N,) in 0 .. num_classes - 1; None without classes.
    num_classes: int  # 0 without classes

    def __post_init__(self) -> None:
        """Raise ValueError where images and labels are not what the attributes say."""
        kind(self.images.dtype, self.images.shape)
        if (self.labels is None) != (self.num_classes == 0):
            raise ValueError(f"labels go with classes: {self.num_classes} classes, labels {type(self.labels).__name__}")
        if self.labels is not None:
            _check_labels(self.labels, len(self.images), self.num_classes)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def kind(self) -> str:
        return kind(self.images.dtype, self.images.shape)

    def unlabelled(self) -> "Images":
        """The same images, for models without classes."""
        return Images(self.images, None, 0)


def kind(dtype: object, shape: Sequence[int]) -> str:
    """`pictures`, uint8 (N, H, W, C), or `points`, float32 (N, D), by dtype of torch or numpy and shape."""
    found = KINDS.get((str(dtype).removeprefix("torch."), len(shape)))
    if found is None:
        raise ValueError(f"pictures must be uint8 (N, H, W, C), or points float32 (N, D), got {dtype} {tuple(shape)}")
    return found


def _check_labels(labels: Tensor, num: int, num_classes: int) -> None:
    if labels.dtype != torch.int64 or labels.shape != (num,):
        raise ValueError(f"labels must be int64 ({num},), got {labels.dtype} {tuple(labels.shape)}")
    if num and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        raise ValueError(f"labels must lie in 0..{num_classes - 1}, got {int(labels.min())}..{int(labels.max())}")
