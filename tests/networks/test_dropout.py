"""Dropout masks: a function of key, layer and element, with the statistics of coin flips."""

import math

import pytest
import torch
from miniature import UNET

from facm.flow.dual import Dual
from facm.networks import backbones
from facm.networks.layers.dropout import Dropout, mask, number_layers

KEYS = torch.randint(2**62, (400,), generator=torch.Generator().manual_seed(0))
SHAPE = torch.Size((400, 16, 32))


@pytest.mark.parametrize("keys", [KEYS, torch.arange(400)], ids=["random keys", "consecutive keys"])
@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_masks_look_like_independent_coin_flips(p: float, keys: torch.Tensor) -> None:
    kept = mask(keys, 1, SHAPE, p)
    assert set(kept.unique().tolist()) == {0.0, 1.0}
    deviation = math.sqrt(p * (1 - p))
    assert abs(float(kept.mean()) - (1 - p)) < 5 * deviation / math.sqrt(kept.numel())
    for rows in (kept.flatten(1), kept.flatten(1).T):  # spread of the means: over elements, then over samples
        expected = deviation / math.sqrt(rows.shape[1])
        assert float(rows.mean(1).std()) == pytest.approx(expected, rel=0.2)
    correlation = torch.corrcoef(kept.flatten(1)[:100]) - torch.eye(100)
    assert float(correlation.abs().max()) < 6 / math.sqrt(512)


def test_a_mask_depends_on_key_and_layer_only() -> None:
    whole = mask(KEYS, 2, SHAPE, 0.3)
    assert torch.equal(mask(KEYS[7:9], 2, torch.Size((2, 16, 32)), 0.3), whole[7:9])
    for other in (mask(KEYS, 3, SHAPE, 0.3), mask(KEYS + 1, 2, SHAPE, 0.3)):
        assert float((other == whole).float().mean()) == pytest.approx(0.58, abs=0.01)  # 0.7^2 + 0.3^2


def test_kept_features_are_scaled_and_a_dual_number_has_one_mask() -> None:
    layer, x = Dropout(0.25), torch.ones(SHAPE, dtype=torch.float64)
    value = layer(x, KEYS)
    assert value.unique().tolist() == [0.0, 1 / 0.75] and value.dtype == torch.float64
    answer = layer(Dual(x, 2 * x), KEYS)
    assert torch.equal(answer.primal, value) and torch.equal(answer.tangent, 2 * value)


def test_without_keys_nothing_is_dropped() -> None:
    x = torch.ones(2, 3)
    assert Dropout(0.5)(x, None) is x and Dropout(0.0)(x, KEYS[:2]) is x


@pytest.mark.parametrize("name", backbones.BACKBONES)
def test_no_two_layers_of_a_network_share_a_mask(name: str) -> None:
    points = name in backbones.POINTS
    constants = {"hidden": 32, "depth": 3} | ({} if points else {"patch_size": 2, "heads": 2})
    constants |= {"encoder_depth": 1} if name == "repa" else {}
    constants = UNET if name == "ddpmpp" else constants
    shape = (2,) if points else (1, 4, 4)
    network = backbones.build(name, constants, shape=shape, num_classes=0, dropout=0.5)
    layers = [int(module.layer) for module in network.modules() if isinstance(module, Dropout)]
    assert len(layers) >= 3 and sorted(layers) == list(range(len(layers)))
    number_layers(network)
    assert [int(module.layer) for module in network.modules() if isinstance(module, Dropout)] == layers
    assert not any("layer" in name.split(".")[-1] for name in network.state_dict())


def test_what_is_kept_is_scaled_without_bias_in_bfloat16() -> None:
    x = torch.full(SHAPE, 64.0, dtype=torch.bfloat16)
    value = Dropout(0.1)(x, KEYS)
    assert value.dtype == torch.bfloat16 and float(value.max()) == float(torch.tensor(64 / 0.9).bfloat16())
