"""Power-function averages and post-hoc synthesis."""

import numpy as np
import pytest
import torch
from oracle import golden
from safetensors.torch import save_file
from torch import nn

from facm.networks import ema
from facm.networks.ema import PowerEMA, synthesize

LENGTHS = (0.05, 0.2)
TRAJECTORY = golden("ema/")["trajectory"]  # (400, 18)


def averaged(trajectory, sigma_rels=LENGTHS, offset=0, every=None):
    """The averages after the trajectory (from its first point), and their copies every so many steps."""
    averages, snapshots = PowerEMA({"w": trajectory[0]}, sigma_rels, offset=offset), []
    for step, w in enumerate(trajectory, start=1):
        averages.update({"w": w}, step)
        if every and step % every == 0:
            snapshots += [(step, s, {"w": averages.weights(s)["w"].clone()}) for s in sigma_rels]
    return averages, snapshots


@pytest.mark.parametrize(("sigma_rel", "gamma"), [(0.05, 16.97), (0.1, 6.937), (0.2, 1.826), (0.25, 0.720)])
def test_gamma_is_the_published_one_and_gives_the_profile_its_relative_width(sigma_rel, gamma):
    assert abs(ema.gamma(sigma_rel) - gamma) < 5e-3 * gamma
    t, g = (np.arange(200_000) + 0.5) / 200_000, ema.gamma(sigma_rel)
    p = (g + 1) * t**g / len(t)
    assert abs(np.sqrt((p * t**2).sum() - (p * t).sum() ** 2) - sigma_rel) < 1e-5


@pytest.mark.parametrize("sigma_rel", LENGTHS)
def test_the_weight_of_a_past_state_grows_as_its_step_to_the_gamma(sigma_rel):
    num = 2000
    weights = averaged(torch.eye(num, dtype=torch.float64), (sigma_rel,))[0].weights(sigma_rel)["w"].numpy()
    k, g = np.arange(1, num + 1), ema.gamma(sigma_rel)
    exact = (k / num) ** (g + 1) - ((k - 1) / num) ** (g + 1)  # the integral of the profile over step k
    np.testing.assert_allclose(weights, exact, atol=1e-14)


def test_the_first_update_copies():
    averages = PowerEMA({"w": torch.ones(3)}, LENGTHS)
    averages.update({"w": torch.full((3,), 7.0)}, 1)
    assert torch.equal(averages.weights(0.05)["w"], torch.full((3,), 7.0))


@pytest.mark.parametrize("sigma_rel", LENGTHS)
def test_the_published_averages_have_a_decay_of_one_step_more(sigma_rel):
    want = golden("ema/")[f"sigma_{sigma_rel}"]
    one_more, ours = (averaged(TRAJECTORY, offset=offset)[0].weights(sigma_rel)["w"] for offset in (1, 0))
    torch.testing.assert_close(one_more, want, atol=5e-6, rtol=0)
    assert 1e-3 < (ours - want).abs().max() < 1e-2


@pytest.mark.parametrize("target", [0.1, 0.15])
def test_the_published_synthesis_is_met_without_normalisation(target):
    """The source stored float16 snapshots every 50 steps (found by trying: only this meets the values)."""
    want = golden("ema/")[f"posthoc_{target}"]
    snapshots = [(step, s, {"w": state["w"].half()}) for step, s, state in averaged(TRAJECTORY, offset=1, every=50)[1]]
    got = synthesize(snapshots, 400, target, normalize=False)["w"]
    assert got.dtype == torch.float16
    in_float32 = [(step, s, {"w": state["w"].float()}) for step, s, state in snapshots]
    torch.testing.assert_close(synthesize(in_float32, 400, target, normalize=False)["w"], want, atol=2e-6, rtol=0)
    w = ema.coefficients([s[:2] for s in snapshots], 400, target, normalize=False)
    assert 5e-4 < abs(w.sum() - 1) < 2e-3


@pytest.mark.parametrize("target", [0.08, 0.1, 0.15])
def test_a_synthesised_average_is_the_one_that_was_not_kept(target):
    direct, _ = averaged(TRAJECTORY.double(), (target,))
    _, snapshots = averaged(TRAJECTORY.double(), every=25)
    got = synthesize(snapshots, 400, target)["w"]
    spread = (TRAJECTORY.double()[-1] - direct.weights(target)["w"]).abs().max()
    assert (got - direct.weights(target)["w"]).abs().max() < 0.02 * spread


@pytest.mark.parametrize("num", [2, 8, 32, 100])
def test_the_coefficients_sum_to_one_and_a_stored_profile_is_its_own_synthesis(num):
    steps = [round(10_000 * (i + 1) / num) for i in range(num)]
    profiles = [(step, s) for step in steps for s in LENGTHS]
    assert abs(ema.coefficients(profiles, 10_000, 0.1).sum() - 1) < 1e-12
    for i in (0, num, 2 * num - 1):
        one_hot = ema.coefficients([p for p in profiles if p[0] <= profiles[i][0]], *profiles[i])
        np.testing.assert_allclose(one_hot, np.eye(len(profiles))[i, : len(one_hot)], atol=1e-6)


def test_snapshots_after_the_wanted_step_are_left_out():
    _, snapshots = averaged(TRAJECTORY, every=10)
    got = synthesize(snapshots, 200, 0.1)["w"]
    assert torch.equal(got, synthesize([s for s in snapshots if s[0] <= 200], 200, 0.1)["w"])
    torch.testing.assert_close(got, averaged(TRAJECTORY[:200], (0.1,))[0].weights(0.1)["w"], atol=5e-3, rtol=0)


def test_files_give_what_states_in_memory_give(tmp_path):
    _, snapshots = averaged(TRAJECTORY, every=100)
    paths = []
    for step, s, state in snapshots:
        paths.append((step, s, tmp_path / f"{step}_{s}.safetensors"))
        save_file(state, paths[-1][2])
    assert torch.equal(synthesize(paths, 400, 0.1)["w"], synthesize(snapshots, 400, 0.1)["w"])


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).to(torch.float32)


def test_constant_buffers_stay_exact_and_whole_numbers_are_copied():
    model = network()
    model.register_buffer("table", torch.randn(5))
    averages, snapshots = PowerEMA(model.state_dict(), LENGTHS), []
    for step in range(1, 40):
        model[1].num_batches_tracked += 3
        averages.update(model.state_dict(), step)
        if step % 10 == 0:
            snapshots += [(step, s, {k: v.clone() for k, v in averages.weights(s).items()}) for s in LENGTHS]
    for weights in (averages.weights(0.2), synthesize(snapshots, 39, 0.1)):
        assert torch.equal(weights["table"], model.table)
        assert weights["1.num_batches_tracked"].dtype == torch.int64
    assert averages.weights(0.2)["1.num_batches_tracked"] == 39 * 3
    assert synthesize(snapshots, 39, 0.1)["1.num_batches_tracked"] == 30 * 3
    model.load_state_dict(averages.weights(0.2))


def test_half_precision_states_are_averaged_in_float32():
    states = TRAJECTORY.bfloat16()
    torch.testing.assert_close(
        averaged(states)[0].weights(0.2)["w"], averaged(states.float())[0].weights(0.2)["w"], atol=0, rtol=0
    )


def test_a_resumed_average_is_the_uninterrupted_one():
    whole, _ = averaged(TRAJECTORY)
    first, _ = averaged(TRAJECTORY[:150])
    resumed = PowerEMA({"w": torch.zeros(18)}, LENGTHS)
    resumed.load_state_dict(first.state_dict())
    for step in range(151, 401):
        resumed.update({"w": TRAJECTORY[step - 1]}, step)
    for s in LENGTHS:
        assert torch.equal(resumed.weights(s)["w"], whole.weights(s)["w"])


STATE = {"w": torch.zeros(2)}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: PowerEMA(STATE, (0.3,)), r"ema.sigma_rel: 0.3 must lie between 0 and 0.2887"),
        (lambda: PowerEMA(STATE, (0.1,)).weights(0.2), r"ema.sigma_rel: 0.2 is not among ema.sigma_rels \(0.1\)"),
        (lambda: PowerEMA(STATE, (0.1,)).update(STATE, 0), r"step 0: the first update comes after step 1"),
        (lambda: PowerEMA(STATE, (0.1,)).load_state_dict({0.2: STATE}), r"have sigma_rels \[0.2\], .* \[0.1\]"),
        (lambda: PowerEMA(STATE, (0.1,)).load_state_dict({0.1: {}}), r"average 0.1: other tensors"),
        (lambda: synthesize([(9, 0.1, STATE)], 5, 0.1), r"no EMA snapshot up to step 5, there are steps \[9\]"),
        (lambda: synthesize([(5, 0.1, STATE), (5, 0.1, STATE)], 5, 0.1), r"same step and sigma_rel: .* two runs"),
        (lambda: synthesize([(5, 0.1, STATE), (5, 0.2, {})], 5, 0.1), r"step 5, sigma_rel 0.2: other tensors"),
    ],
)
def test_what_cannot_be_averaged_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
