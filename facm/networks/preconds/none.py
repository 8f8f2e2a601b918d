"""No preconditioning: the backbone answers with the velocity itself."""

from torch import nn


def plain(model: nn.Module) -> nn.Module:
    return model
