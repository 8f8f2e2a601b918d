"""The 1797 handwritten digits, 8x8 grey, that scikit-learn carries (load_digits): no download, no folder."""

from pathlib import Path

import torch

from facm.data.images.images import Images

SPLIT_SEED = 0


class Digits:
    """load_digits in a fixed, stratified 75/25 split: 1347 images to train on, 450 held out."""

    def __init__(self, root: Path | None = None):
        """Nothing to read; ValueError where a folder is given."""
        if root is not None:
            raise ValueError(f"params.yaml, data.root: 'digits' comes with scikit-learn, got {root}; set it to null")

    def load(self, split: str) -> Images:
        """One split: images uint8 (N, 8, 8, 1), labels 0..9; levels 0..16 become round(255/16 level)."""
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        levels, labels = load_digits(return_X_y=True)
        images = torch.from_numpy(levels).mul(255 / 16).add(0.5).floor().to(torch.uint8).view(-1, 8, 8, 1)
        classes = torch.from_numpy(labels).to(torch.int64)
        train, heldout = train_test_split(
            torch.arange(len(classes)).numpy(), test_size=0.25, stratify=labels, random_state=SPLIT_SEED
        )
        rows = torch.from_numpy(train if split == "train" else heldout)
        return Images(images[rows], classes[rows], num_classes=10)
