"""Alignment in pretraining: the loss, its pass, tokens beside the latents, the encoder, and both stages."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from miniature import NETWORK, SCRATCH, parsed, randomised, write_latents, write_params
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from facm import check
from facm.data.latents import encoder, tokens
from facm.data.latents.store import LatentSet
from facm.data.latents.tokens import TokenSet
from facm.flow import path as flow
from facm.flow.interface import Point, Progress, Query
from facm.flow.time import TimeSampler
from facm.networks import backbones, checkpoint
from facm.networks.backbones.repa import make_projector
from facm.objectives.fm import FM
from facm.runtime import dist
from facm.runtime.files import sha256
from facm.runtime.resume import Work
from facm.training import loop as train
from facm.training import repa, target_velocity
from facm.training.batch import Batch, share
from facm.training.passes import Plan, prepare
from facm.training.step import Step

REPA = NETWORK | {"depth": 2, "encoder_depth": 1, "projector_width": 8, "features": 6}
FINGERPRINT = "f" * 64


class Mean:
    """An encoder whose four tokens are the pixels of a 2 x 2 quarter, repeated to a width of six."""

    name = "mean"

    def tokens(self, images: Tensor) -> Tensor:
        quarters = images[..., 0].float().unfold(1, 2, 2).unfold(2, 2, 2).flatten(3).flatten(1, 2)  # (B, 4, 4)
        return torch.cat([quarters, quarters[..., :2]], dim=-1)


def pictures(num: int = 14) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (num, 4, 4, 1), generator=generator, dtype=torch.uint8)


def write(folder: Path, flip: bool = False) -> None:
    images = pictures()
    options: dict[str, Any] = {"flip": flip, "shard_size": 5, "batch_size": 3, "fingerprint": FINGERPRINT}
    tokens.write(folder, lambda part: images[part.start : part.stop], len(images), Mean(), **options)


def test_finished_token_shards_survive_a_kill(tmp_path: Path) -> None:
    images, seen = pictures(), []

    class Killed(Mean):
        def __init__(self, at: int) -> None:
            self.at = at

        def tokens(self, images: Tensor) -> Tensor:
            if len(seen) == self.at:
                raise KeyboardInterrupt
            seen.append(len(images))
            return super().tokens(images)

    def run(folder: Path, at: int, unfinished: Path | None) -> None:
        options: dict[str, Any] = {"flip": True, "shard_size": 5, "batch_size": 5, "fingerprint": FINGERPRINT}
        few = Killed(at)
        tokens.write(
            folder, lambda rows: images[rows.start : rows.stop], len(images), few, unfinished=unfinished, **options
        )

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "set", 4, tmp_path / "unfinished")
    assert not list((tmp_path / "set").iterdir()) and seen == [5, 5, 5, 5], "two shards, mirrored too"
    run(tmp_path / "set", -1, tmp_path / "unfinished")
    assert seen == [5, 5, 5, 5, 4, 4]
    run(tmp_path / "undisturbed", -1, None)
    names = sorted(path.name for path in (tmp_path / "undisturbed").iterdir())
    assert sorted(path.name for path in (tmp_path / "set").iterdir()) == names
    assert all((tmp_path / "set" / n).read_bytes() == (tmp_path / "undisturbed" / n).read_bytes() for n in names)


def find(folder: Path, **changes: Any) -> TokenSet:
    found = TokenSet.find(folder, **({"num": 14, "flips": False, "fingerprint": FINGERPRINT} | changes))
    assert found is not None
    return found


def network(**constants: Any) -> Any:
    return randomised(backbones.build("repa", REPA | constants, shape=(1, 4, 4), num_classes=3))


def test_a_projector_begins_with_biases_of_0_and_xaviers_weights() -> None:
    made = make_projector(40, 60, 50)
    for linear in (made[0], made[2], made[4]):
        bound = (6 / sum(linear.weight.shape)) ** 0.5
        assert not linear.bias.any() and 0.95 * bound < linear.weight.abs().max() <= bound


# The loss


def test_alignment_is_minus_the_mean_cosine_over_tokens() -> None:
    z = torch.randn(3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(repa.alignment(7 * z, z), -torch.ones(3).double())
    torch.testing.assert_close(repa.alignment(-z, 0.1 * z), torch.ones(3).double())
    a, b = torch.tensor([[[1.0, 0], [1, 0]]]), torch.tensor([[[3.0, 4], [0, 2]]])
    torch.testing.assert_close(repa.alignment(a, b), torch.tensor([-(0.6 + 0) / 2]))


def test_tokens_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"got projected tokens \(1, 4, 6\) for an encoder's \(1, 4, 5\)"):
        repa.alignment(torch.ones(1, 4, 6), torch.ones(1, 4, 5))


def test_an_aligned_objective_asks_once_and_adds_its_term() -> None:
    generator = torch.Generator().manual_seed(0)
    x0, x1, projected = (torch.randn(4, 2, 2, 2, generator=generator) for _ in range(3))
    projected, seen = projected.flatten(2), torch.randn(4, 2, 4, generator=generator)
    objective, asked = FM(), []
    together = repa.Aligned(coefficient=0.5)
    times = together.times(torch.randn(4, 2, generator=generator), TimeSampler("uniform"), Progress(1, 1))
    x_t = flow.interpolate(x0, x1, times["t"])
    point = Point(
        x0=x0, x1=x1, x_t=x_t, y=None, times=times, velocity=lambda *_: x1 - x0, tools={"tokens": lambda: seen}
    )

    def F_theta(*queries: Any) -> tuple[Any, ...]:
        asked.extend(queries)
        return tuple((query.x.sin(), projected) if query.tokens else query.x.sin() for query in queries)

    losses = together(F_theta, point)
    (query,) = asked
    assert query.tokens and query.grad and tuple(losses) == together.terms == ("fm", "repa")
    torch.testing.assert_close(losses["fm"], objective(F_theta, point)["fm"])
    torch.testing.assert_close(losses["repa"], 0.5 * repa.alignment(projected, seen))
    assert (together.normals, together.samplers, together.conditioning) == (2, objective.samplers, "expanded")


def test_what_does_not_fit_together_is_told_before_work(tmp_path: Path) -> None:
    write(tmp_path)
    objective, found = FM(), find(tmp_path)
    assert repa.aligned(objective, network(projector=False), None) is objective
    assert repa.aligned(objective, network(coefficient=0.0), found) is objective
    assert repa.aligned(objective, network(coefficient=0.25), found) == repa.Aligned(coefficient=0.25)
    with pytest.raises(ValueError, match=r"backbones.repa.coefficient: above 0 it needs an encoder's tokens"):
        repa.aligned(objective, network(), None)
    for change in ({"features": 5}, {"patch_size": 1}):
        with pytest.raises(ValueError, match=r"tokens \(4, 6\) \(number, width\) per picture, the network of params"):
            repa.aligned(objective, network(**change), found)


# Its way through a training step


def loop(folder: Path, network: nn.Module, plan: Plan, **changes: Any) -> train.Loop:
    latents = LatentSet.open(folder / "latents")
    p = parsed(**({"teacher__steps": 8, "teacher__batch_size": 8} | changes))
    found = find(folder / "latents")
    objective = repa.aligned(FM(), network, found)
    job = train.Job(
        "teacher", network, objective, latents, p.teacher, target_velocity.Data(), p.runtime, plan, tokens=found
    )
    return train.Loop(job, Work("teacher", "k", folder), str(folder / "log"))


@pytest.mark.parametrize(
    "plan",
    [Plan(), Plan(checkpoint=True, accumulate=2), Plan(lean=True), Plan(precision="bfloat16")],
    ids=["shipped", "checkpoint, micro-batches", "lean", "bfloat16"],
)
def test_pretraining_moves_every_weight_and_aligns(plan: Plan, tmp_path: Path) -> None:
    write_latents(tmp_path / "latents")
    write(tmp_path / "latents")
    trained = network()
    before = {name: weight.clone() for name, weight in trained.named_parameters()}
    run = loop(tmp_path, trained, plan)
    for _ in range(8):
        run.advance()
    rows = run.log.rows if run.log is not None else []
    assert run.state.skipped == 0 and {"loss_fm", "loss_repa", "velocity_error"} <= rows[0].keys()
    assert [name for name, weight in trained.named_parameters() if torch.equal(weight, before[name])] == []
    assert rows[-1]["loss_repa"] < rows[0]["loss_repa"] - 0.05, "drawn to the tokens"
    assert -0.5 <= rows[-1]["loss_repa"] <= 0.5, "coefficient 0.5"
    run.work.close()


def gradients(plan: Plan, *, size: int = 6) -> dict[str, Tensor]:
    """Of one batch with tokens, on this process's share of it."""
    torch.manual_seed(3)
    x0, x1, seen = torch.randn(size, 1, 4, 4), torch.randn(size, 1, 4, 4), torch.randn(size, 4, 6)
    batch = Batch(x0, x1, torch.arange(size) % 4, torch.randn(size, 2), None, size, seen)
    step = Step(
        prepare(network(), plan),
        repa.Aligned(coefficient=0.5),
        target_velocity.Data(),
        TimeSampler("uniform"),
        plan,
        null=3,
    )
    step.gradients(batch.rows(share(size, dist.rank(), dist.world_size())), Progress(1, 2))
    return {
        name: dist.gather_full(p.grad, everywhere=True) for name, p in step.student.passes.network.named_parameters()
    }


@pytest.mark.parametrize(
    "plan", [Plan(checkpoint=True), Plan(accumulate=3), Plan(lean=True, accumulate=2)], ids=["checkpoint", "3", "lean"]
)
def test_a_plan_changes_rounding_only(plan: Plan) -> None:
    expected = gradients(Plan())
    for name, gradient in gradients(plan).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6)


PARALLEL = ("ddp", "fsdp")


def on_ranks(folder: Path) -> None:
    for parallel in PARALLEL:
        found = gradients(Plan(parallel=parallel))
        if dist.is_main():
            save_file(found, folder / f"{parallel}.safetensors")


@pytest.mark.slow
def test_two_processes_have_the_gradient_of_one(tmp_path: Path) -> None:
    import ranks

    ranks.run(2, on_ranks, tmp_path)
    expected = gradients(Plan())
    for parallel in PARALLEL:
        found = load_file(tmp_path / f"{parallel}.safetensors")
        assert expected.keys() == found.keys()
        for name, gradient in found.items():
            torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_compiled_blocks_answer_tokens_and_derivatives_as_eager_ones_do() -> None:
    x, t, y = torch.randn(4, 1, 4, 4), torch.rand(4), torch.arange(4) % 4
    questions = [Query(x, t, y, None, tokens=True), Query(x, t, y, None, dx=x.sin(), dt=torch.ones(4))]
    answers = []
    for plan in (Plan(), Plan(compile=True)):
        passes = prepare(network(depth=1), plan)
        (velocity, projected), (F, dF_dt) = passes(questions)
        (velocity.square().sum() + projected.square().sum() + F.square().sum()).backward()
        answers.append([velocity, projected, F, dF_dt, *(weight.grad for weight in passes.parameters())])
    for eager, compiled in zip(*answers, strict=True):
        torch.testing.assert_close(compiled, eager, rtol=1e-4, atol=1e-4)


# Tokens beside the latents


@pytest.mark.parametrize("flip", [False, True])
def test_tokens_come_back_in_any_order_each_of_its_picture(flip: bool, tmp_path: Path) -> None:
    write(tmp_path, flip)
    found, images = find(tmp_path, flips=flip), pictures()
    assert (found.num, found.shape, found.encoder) == (14, (4, 6), "mean")
    indices = torch.tensor([13, 0, 4, 5, 0])
    assert torch.equal(found.batch(indices), Mean().tokens(images[indices])), "0..255 are exact in float16"
    assert found.batch(indices).dtype == torch.float32 and found.shards[0]["tokens"].dtype == torch.float16
    if flip:
        flips = torch.tensor([True, False, True, True, False])
        expected = torch.where(flips[:, None, None, None], images[indices].flip(2), images[indices])
        assert torch.equal(found.batch(indices, flips), Mean().tokens(expected))
    else:
        with pytest.raises(ValueError, match=r"without mirrored pictures: set latents.flip: true"):
            found.batch(indices, torch.ones(5, dtype=torch.bool))
    for wrong in ([14], [-1]):
        with pytest.raises(IndexError, match=r"indices must lie in 0..13"):
            found.batch(torch.tensor(wrong))


def test_without_tokens_there_are_none_and_stale_ones_go(tmp_path: Path) -> None:
    assert TokenSet.find(tmp_path, num=14, flips=False, fingerprint=FINGERPRINT) is None
    (tmp_path / "tokens_00009.safetensors").write_bytes(b"stale")
    (tmp_path / "shard_00000.safetensors").write_bytes(b"a latent's")
    write(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "shard_00000.safetensors",
        "tokens.json",
        *(f"tokens_0000{i}.safetensors" for i in range(3)),
    ]


def test_tokens_of_other_pictures_and_damaged_ones_are_refused(tmp_path: Path) -> None:
    write(tmp_path)
    for change in ({"num": 13}, {"flips": True}, {"fingerprint": "0" * 64}):
        with pytest.raises(ValueError, match=r"tokens.json is of \(number, flips, fingerprint\) \(14, False, 'fff"):
            find(tmp_path, **change)
    path = tmp_path / "tokens_00001.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    with pytest.raises(ValueError, match="dvc repro"):
        find(tmp_path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="tokens_00001"):
        find(tmp_path)


# The encoder


TINY = {"embed_dim": 24, "depth": 2, "num_heads": 2}
NAME = "vit_base_patch14_dinov2"


def of_meta() -> dict[str, Tensor]:
    """A state dict as Meta publishes it, small: 37 x 37 positions, a mask token, no head."""
    import timm

    torch.manual_seed(0)
    whole = timm.create_model(NAME, pretrained=False, **TINY)
    weights = {name: torch.randn_like(tensor) * 0.3 for name, tensor in whole.state_dict().items()}
    assert weights["pos_embed"].shape == (1, 37 * 37 + 1, 24)
    return weights


def test_tokens_are_the_normalised_patch_tokens_of_the_enlarged_picture() -> None:
    import timm
    from timm.layers import resample_abs_pos_embed

    weights = of_meta()
    encoding = encoder.Encoder(NAME, weights | {"mask_token": torch.zeros(1, 24)}, side=56, **TINY)
    images = torch.randint(0, 256, (3, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    found = encoding.tokens(images)
    assert found.shape == (3, 16, 24) and found.dtype == torch.float32 and not found.requires_grad
    assert torch.equal(found, encoder.Encoder(NAME, weights, side=56, **TINY).tokens(images)), "timm's own file"
    reference = timm.create_model(NAME, pretrained=False, img_size=56, **TINY).eval()
    positions = resample_abs_pos_embed(weights["pos_embed"], [4, 4], num_prefix_tokens=1)
    reference.load_state_dict(weights | {"pos_embed": positions})
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (encoder.MEAN, encoder.STD))
    x = (images.permute(0, 3, 1, 2) / 255.0 - mean) / std
    x = torch.nn.functional.interpolate(x, 56, mode="bicubic")
    (expected,) = reference.get_intermediate_layers(x, n=1, norm=True)
    torch.testing.assert_close(found, expected)
    grey = images[..., :1]
    assert torch.equal(encoding.tokens(grey), encoding.tokens(grey.expand(-1, -1, -1, 3)))


def test_what_is_no_picture_is_refused() -> None:
    encoding = encoder.Encoder(NAME, of_meta(), side=28, **TINY)
    for wrong in (torch.zeros(1, 4, 4, 3), torch.zeros(1, 4, 4, 4, dtype=torch.uint8)):
        with pytest.raises(ValueError, match=r"pictures must be uint8 \(B, H, W, 1 or 3\), got"):
            encoding.tokens(wrong)


def test_weights_are_pinned_and_must_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import timm

    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    model = timm.create_model("test_vit", pretrained=False, num_classes=0)
    torch.save(model.state_dict(), tmp_path / "small.pth")
    save_file(dict(model.state_dict()), tmp_path / "small.safetensors")
    images, answers = pictures(2), []
    for file in ("small.pth", "small.safetensors"):
        answers.append(encoder.load("test_vit", file, sha256(tmp_path / file), 32).tokens(images))
    assert torch.equal(*answers) and answers[0].shape == (2, 4, 64)
    pinned = sha256(tmp_path / "small.pth")
    cases = [
        (("test_vit", "none.pth", pinned, 32), r"latents.tokens.weights: .*none.pth is missing"),
        (("test_vit", "small.pth", "0" * 64, 32), r"latents.tokens.sha256: pinned is 0000"),
        (
            ("test_vot", "small.pth", pinned, 32),
            r"tokens.encoder: timm .* has no vision transformer 'test_vot'",
        ),
        (("test_vit", "small.pth", pinned, 40), r"latents.tokens.side: 40 is not a multiple of the patch size 16"),
        (("vit_tiny_patch16_224", "small.pth", pinned, 32), r"latents.tokens.weights: they do not fit 'vit_tiny"),
        (
            ("resnet18", "small.pth", pinned, 32),
            r"tokens.encoder: timm .* has no vision transformer 'resnet18'",
        ),
    ]
    for arguments, message in cases:
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            encoder.load(*arguments)


# Params and stages


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone__name": "repa"}, "latents.tokens.encoder: the teacher of backbone repa is aligned with an encoder"),
        ({"latents__tokens__encoder": "test_vit"}, "latents.tokens: encoder, weights and sha256 go together"),
        ({"latents__tokens__sha256": "0" * 64}, "latents.tokens: encoder, weights and sha256 go together"),
        ({"backbone__name": "sit", "backbones__sit__hidden": 64}, "variant XL/2 has hidden 1152, but hidden is 64"),
    ],
    ids=str,
)
def test_params_that_cannot_be_run_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check.check(parsed(**changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"backbone__name": "repa", "backbones__repa__coefficient": 0.0},
        {"backbone__name": "repa", **SCRATCH},
        {"backbone__name": "sit", "backbones__sit__variant": "S/8"},
        {"backbone__name": "dit"},
    ],
    ids=str,
)
def test_params_that_can_be_run_are_accepted(changes: dict[str, Any]) -> None:
    check.check(parsed(**changes))


def test_the_stages_align_a_teacher_and_make_a_student_without_projector(tmp_path: Path, monkeypatch) -> None:
    import timm

    from stages import distill, latents, teacher

    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    save_file(dict(timm.create_model("test_vit", pretrained=False, num_classes=0).state_dict()), "vit.safetensors")
    small = {"variant": None, "patch_size": 4, "hidden": 32, "depth": 1, "heads": 2, "encoder_depth": 1}
    changes: dict[str, Any] = {f"backbones__repa__{name}": value for name, value in small.items()}
    changes |= {"backbone__name": "repa", "backbones__repa__features": 64, "backbones__repa__projector_width": 8}
    changes |= {"latents__tokens__encoder": "test_vit", "latents__tokens__weights": "vit.safetensors"}
    changes |= {"latents__tokens__sha256": sha256(Path("vit.safetensors")), "latents__tokens__side": 32}
    threads = torch.get_num_threads()
    write_params(tmp_path, **changes)
    try:
        latents.main()
        teacher.main()
        figures = json.loads(Path("metrics/teacher.json").read_text())["teacher_training"]
        assert {"loss_fm", "loss_repa"} <= figures.keys()
        aligned, described = checkpoint.load("data/teacher")
        assert any(name.startswith("projectors.") for name in aligned.state_dict())
        assert described.constants["patch_size"] == 4 and "variant" not in described.constants
        distill.main()
    finally:
        torch.set_num_threads(threads)
        torch.set_flush_denormal(False)
    student, described = checkpoint.load("data/student")
    assert described.constants["projector"] is False
    assert not any(name.startswith("projectors.") for name in load_file("data/student/model.safetensors"))
    assert student.state_dict().keys() == {n for n in aligned.state_dict() if not n.startswith("projectors.")}
    again, _ = checkpoint.load("data/student")
    config = checkpoint.read_config("data/student")
    checkpoint.start_from(again, config, "data/teacher", None)
    weights = aligned.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in again.state_dict().items())


def test_a_projector_may_begin_anew_where_the_checkpoint_has_none() -> None:
    without, beginning = network(projector=False), network()
    checkpoint.transfer(beginning, dict(without.state_dict()), "here")
    assert torch.equal(
        beginning.state_dict()["blocks.0.attn.qkv.weight"], without.state_dict()["blocks.0.attn.qkv.weight"]
    )
    weights = dict(network().state_dict())
    checkpoint.transfer(network(projector=False), weights, "here")
    del weights["blocks.0.attn.qkv.weight"]
    with pytest.raises(checkpoint.CheckpointError, match=r"missing \['blocks.0.attn.qkv.weight'\]"):
        checkpoint.transfer(network(projector=False), weights, "here")
