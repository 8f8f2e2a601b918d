"""How a step is computed: precision, what is refused, and what compiled code is asked."""

import dataclasses
from typing import Any

import pytest
import torch
from miniature import NETWORK, parsed, randomised
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

from facm.flow.interface import Query
from facm.networks import backbones
from facm.networks.layers.blocks import Modulation, RMSNorm, TimeEmbedder
from facm.training import loop
from facm.training.passes import Passes, Plan, prepare

KEYS = torch.arange(4) + 1


def network(depth: int = 2, dropout: float = 0.3) -> nn.Module:
    sizes: dict[str, Any] = {"shape": (1, 4, 4), "num_classes": 3, "dropout": dropout}
    return randomised(backbones.build("lightningdit", NETWORK | {"depth": depth}, **sizes))


def queries() -> list[Query]:
    """A value in the FM format, and a value with its derivative in the CM format."""
    x, dx = torch.randn(2, 4, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    t, y = torch.tensor([0.1, 0.4, 0.6, 0.9]), torch.arange(4)
    derivative = Query(x, t, y, dx=dx, dt=torch.ones(4), key=KEYS)
    return [Query(x, 2 - t, y, key=KEYS), derivative]


def gradient(asked: Passes) -> tuple[list[Tensor], Tensor]:
    """All answers, flat, and the gradient of a sum of squares of the values."""
    F_fm, (F_cm, dF_dt) = asked(queries())
    (F_fm.square().sum() + F_cm.square().sum()).backward()
    return [F_fm, F_cm, dF_dt], torch.cat([p.grad.flatten() for p in asked.parameters() if p.grad is not None])


@pytest.mark.parametrize("derivative", ["dual", "func"])
def test_bfloat16_keeps_times_norms_and_answers_in_float32(derivative: str) -> None:
    exact, expected = gradient(prepare(network(), Plan(), derivative))
    asked, seen = prepare(network(), Plan(precision="bfloat16"), derivative), dict[str, set[torch.dtype]]()

    def remember(module: nn.Module, _: Any, out: Any) -> None:
        out = out[0] if isinstance(out, (list, tuple)) else out
        seen.setdefault(type(module).__name__, set()).add(out.dtype)

    for module in asked.network.modules():
        module.register_forward_hook(remember)
    answers, found = gradient(asked)
    assert all(answer.dtype == torch.float32 for answer in answers) and not answers[2].requires_grad
    assert {p.dtype for p in asked.parameters()} == {torch.float32}
    for name in (TimeEmbedder.__name__, Modulation.__name__, "Embedding", "Block"):
        assert seen[name] == {torch.float32}, name
    assert seen["PatchEmbed"] == {torch.bfloat16}, "the large products are in bfloat16"
    assert torch.bfloat16 in seen[RMSNorm.__name__], "queries and keys, whose statistics torch takes in float32"
    for answer, other in zip(answers, exact, strict=True):
        assert 1e-5 < float((answer - other).norm() / other.norm()) < 2e-2
    assert float((found - expected).norm() / expected.norm()) < 2e-2


def test_one_sample_has_one_mask_in_every_pass() -> None:
    asked = prepare(network(), Plan())
    value, derivative = queries()
    plain, (dual, _) = asked([derivative._replace(dx=None, dt=None), derivative])
    torch.testing.assert_close(plain, dual)
    without, others = asked([value._replace(key=None), value._replace(key=KEYS + 1)])
    assert not torch.allclose(asked([value])[0], without) and not torch.allclose(asked([value])[0], others)


def test_recomputing_blocks_needs_blocks() -> None:
    points = backbones.build("mlp", {"hidden": 8, "depth": 1}, shape=(2,), num_classes=0)
    with pytest.raises(ValueError, match=r"params.yaml, train.checkpoint: MLP has no blocks that could be recomputed"):
        prepare(points, Plan(checkpoint=True))


def test_networks_are_compiled_block_by_block_and_whole_without_blocks(monkeypatch) -> None:
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(torch, "compile", lambda function, **options: asked.append(options) or function)
    prepare(network(3), Plan(compile=True, checkpoint=True))
    assert asked == 3 * [{"fullgraph": True, "dynamic": False}]
    prepare(backbones.build("mlp", {"hidden": 8, "depth": 2}, shape=(2,), num_classes=0), Plan(compile=True))
    assert len(asked) == 4


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"checkpoint": True}, {"precision": "bfloat16"}], ids=str)
def test_compiled_code_gives_the_gradient_of_eager_code(options: dict[str, Any]) -> None:
    answers, expected = gradient(prepare(network(1), Plan(**options)))
    asked = prepare(network(1), Plan(compile=True, **options))
    for _ in range(2):
        asked.zero_grad()
        compiled, found = gradient(asked)
        bound = 1e-5 if options.get("precision") != "bfloat16" else 2e-2
        assert float((found - expected).norm() / expected.norm()) < bound
        assert all(torch.allclose(a, b, rtol=bound, atol=bound) for a, b in zip(answers, compiled, strict=True))
        assert [a.requires_grad for a in compiled] == [True, True, False]


@pytest.mark.slow
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_all_blocks_share_their_compiled_code(dropout: float, monkeypatch) -> None:
    compile_, counter = torch.compile, CompileCounter()
    monkeypatch.setattr(torch, "compile", lambda function, **options: compile_(function, backend=counter, **options))
    torch._dynamo.reset()
    gradient(prepare(network(3, dropout), Plan(compile=True)))
    assert counter.frame_count == 2, "one for tensors and one for dual numbers"


def test_every_field_of_a_plan_is_a_key_of_train_in_params() -> None:
    block = parsed().train
    assert loop.plan_of(block) == Plan(**dataclasses.asdict(block)) == Plan()
