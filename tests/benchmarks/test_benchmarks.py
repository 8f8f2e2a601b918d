"""benchmarks/: the published step against golden values, ours against the published one, and what is measured of them.

Times are not tested: they belong to a quiet machine.
"""

import copy
import json
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from miniature import write_checkpoint, write_latents
from oracle import golden, golden_losses, golden_network

from benchmarks import encoding, generation, meter, step
from benchmarks.published import Published, WrittenOut
from benchmarks.variants import SIZES, Size, Variant, Workload, backward, gradient
from facm.data import codecs
from facm.data.codecs.sd_vae import SdVae
from facm.export import onnx
from facm.training.passes import Plan

CPU = torch.device("cpu")
PLANS = {
    "joint": Plan(),
    "lean": Plan(lean=True),
    "checkpointed": Plan(checkpoint=True),
    "two micro-batches": Plan(accumulate=2),
    "two lean micro-batches": Plan(accumulate=2, lean=True),
}


def tiny(dtype: torch.dtype = torch.float32) -> Workload:
    """Four samples for two networks of two blocks."""
    return Workload.create(SIZES["tiny"], CPU, dtype=dtype)


def test_the_published_step_meets_the_losses_and_gradients_of_the_published_code():
    name = "expanded/facm_distill"
    g, want = golden(), golden_losses()[name]
    student, teacher = golden_network("expanded", "student"), golden_network("expanded", "teacher")
    published = Published(teacher=teacher, student=student, forward=student, null=1000)
    means = backward(student, lambda: published(g["x0"], g["x1"], g["t"], g["y"]))
    for term, mean in means.items():
        assert abs(mean.item() - want[term]) < 1e-5 * want[term], term
    for key, right in golden(f"{name}/grad/").items():
        got = student.get_parameter(key).grad
        assert (got - right).norm() <= 1e-5 * right.norm() + 1e-8, key


@pytest.mark.parametrize("anchor", [1.0, 0.0], ids=["FM and CM", "CM only"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
@pytest.mark.parametrize("plan", PLANS)
def test_the_step_has_loss_and_gradient_of_the_published_one(plan, dtype, tolerance, anchor):
    load = tiny(dtype)
    published = load.published(load.student)
    terms = ("fm", "cm") if anchor else ("cm",)
    want = backward(load.student, lambda: {term: mean for term, mean in published().items() if term in terms})
    ours = load.step(copy.deepcopy(load.student), PLANS[plan], anchor=anchor)
    means, right = ours.run(), gradient(load.student)
    assert (gradient(ours.network) - right).norm() <= tolerance * right.norm()
    for term in terms:
        assert abs(means[term] / want[term] - 1) <= tolerance, term


def test_a_step_that_is_wrong_is_refused():
    load = tiny()
    right = load.variant("joint")

    def wrong():
        means = right.run()
        next(right.network.parameters()).grad.add_(0.1)
        return means

    step.gate(load, {"joint": lambda: right})
    with pytest.raises(step.Wrong, match="joint: loss .* gradient .* off, allowed 1e-05"):
        step.gate(load, {"joint": lambda: Variant(right.network, wrong)})


def test_the_gate_of_a_large_batch_takes_few_samples(monkeypatch):
    load, built, sizes = tiny(), {}, []
    monkeypatch.setattr(step, "GATED", 2)
    monkeypatch.setattr(step, "gate", lambda few, builders: sizes.append(few.size.batch) or {})
    step.gated(load, ["joint"], built)
    assert (load.size.batch, sizes, built) == (4, [2], {})
    monkeypatch.setattr(step, "GATED", 4)
    step.gated(load, ["joint"], built)
    assert sizes == [2, 4] and list(built) == ["joint"], "what the gate has compiled is not compiled again"


def test_the_variants_cost_what_the_method_says():
    load = tiny()
    told = step.count(load, ["fm", "reference", "joint"])
    assert told["floor"] == 9 + told["a"]
    for name, cost in [("fm", 3), ("reference", 10), ("joint", told["floor"])]:
        assert told["steps"][name] == pytest.approx(cost, rel=0.02), name


def test_the_result_has_the_promised_keys(tmp_path, capsys):
    file = tmp_path / "step.json"
    step.main(["--preset", "tiny", "--rounds", "3", "--batch", "2", "--mem", "--json", str(file)])
    result = json.loads(file.read_text())
    keys = ["config", "device", "figures", "flops", "gate", "git", "memory_mib", "python", "samples", "targets"]
    assert sorted(result) == [*keys, "threads", "torch"]
    assert result["config"]["batch"] == 2
    names = {"fm", "reference", "joint", "lean", "checkpointed"}
    for key in ("figures", "gate", "memory_mib", "samples"):
        assert result[key].keys() == names, key
    assert all(len(values) == 3 for clocks in result["samples"].values() for values in clocks.values())
    assert result["figures"]["fm"]["over_fm"] == result["figures"]["reference"]["speedup"] == 1
    ratios = [(t["figure"], t["top"], t["bottom"]) for t in result["targets"]]
    assert ("time", "joint", "fm") in ratios and ("memory", "checkpointed", "reference") in ratios
    told = capsys.readouterr().out
    assert "| time: joint / fm | " in told and "| checkpointed | " in told


def test_targets_are_bounds_and_are_left_out_where_nothing_was_measured():
    at_most, at_least = step.TARGETS[0], step.TARGETS[2]
    assert at_most.met(3.3) and not at_most.met(3.31)
    assert at_least.met(1.12) and not at_least.met(1.11)
    result = {"figures": {"joint": {"median": 3.0}, "fm": {"median": 1.0}}}
    assert step.judge(at_most, result)["ratio"] == 3
    assert step.judge(at_least, result) is None


def test_mfu_counts_nine_forward_passes_whatever_was_computed():
    samples = {name: {"gpu": [0.5, 0.5], "wall": [0.6, 0.6]} for name in ("fm", "joint")}
    result = {"samples": samples, "flops": {"F": 1e12, "steps": {"fm": 3.0, "joint": 12.0}}, "threads": 1}
    told = step.figures(result, SIZES["tiny"], peak_tflops=100.0)
    assert told["joint"]["mfu"] == pytest.approx(9 / 50) and told["joint"]["hfu"] == pytest.approx(12 / 50)
    assert told["fm"]["mfu"] == pytest.approx(3 / 50) and told["fm"]["images_per_s"] == 8


def test_process_time_counts_for_one_thread_and_wall_time_for_several():
    samples = {"fm": {"cpu": [2.0], "wall": [1.0]}}
    for threads, seconds in [(1, 2.0), (2, 1.0)]:
        result = {"samples": samples, "flops": {}, "threads": threads}
        assert step.figures(result, SIZES["tiny"], None)["fm"]["median"] == seconds


def test_a_number_of_tokens_that_is_no_square_is_refused():
    with pytest.raises(ValueError, match="--tokens 20 must be a square"):
        Size(hidden=32, depth=2, heads=2, tokens=20)


def test_memory_is_the_peak_above_entry():
    held = torch.ones(2**20)

    def run():
        a = held + 1  # 4 MiB
        b = a + 1  # 8
        del a
        return b + 1  # 8

    assert meter.peak_mib(run, CPU) == pytest.approx(8, abs=0.1)


def test_each_round_starts_with_another_variant():
    order: list[str] = []
    runs = {name: partial(order.append, name) for name in "abc"}
    samples = meter.interleaved(runs, 3, CPU)
    assert "".join(order) == "abcbcacab"
    assert [len(clocks["cpu"]) for clocks in samples.values()] == [3, 3, 3]
    assert meter.spread([1.0, 2.0, 3.0, 4.0, 9.0]) == {"median": 3, "min": 1, "iqr": 2}


def test_the_published_steps_attention_is_written_out_under_autocast_only() -> None:
    q, k, v = torch.randn(3, 2, 2, 5, 8, generator=torch.Generator().manual_seed(0))
    right = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    with WrittenOut():
        assert torch.equal(torch.nn.functional.scaled_dot_product_attention(q, k, v), right)
        with torch.autocast("cpu", torch.bfloat16):
            answer = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    assert answer.dtype == torch.bfloat16 and not torch.equal(answer.float(), right)
    torch.testing.assert_close(answer.float(), right, atol=0.02, rtol=0.02)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("generation")
    latents = write_latents(folder / "latents")
    write_checkpoint(folder / "student", latents, kind="student")
    write_checkpoint(folder / "teacher", latents)
    return folder


def test_generation_is_measured_for_one_picture_and_for_a_batch(trained: Path, tmp_path: Path, capsys):
    file = tmp_path / "generation.json"
    words = [str(trained / "student"), "--teacher", str(trained / "teacher"), "--no-pipeline", "--no-onnx"]
    generation.main([*words, "--rounds", "2", "--batch", "3", "--json", str(file)])
    result = json.loads(file.read_text())
    names = {"facm NFE 1", "facm NFE 2", "facm NFE 4", "teacher"}
    assert result["batches"].keys() == {"1", "3"} and result["weights"] > 0
    for measured in result["batches"].values():
        assert measured["samples"].keys() == measured["memory_mib"].keys() == names
        assert all(len(clocks["cpu"]) == 2 for clocks in measured["samples"].values())
    assert "| facm NFE 1 | " in capsys.readouterr().out


@pytest.mark.slow
def test_every_way_to_generate_draws_the_same_pictures(trained: Path, capsys):
    pytest.importorskip("onnxruntime")
    generation.main([str(trained / "student"), "--rounds", "1", "--batch", "3"])
    told = capsys.readouterr().out
    assert "| FACMPipeline NFE 4 | " in told and "| ONNX NFE 1 | " in told


def test_without_the_packages_of_onnx_it_is_refused_in_one_line(trained: Path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setattr(onnx, "_installed", lambda name: name != "onnxruntime")
    with pytest.raises(SystemExit) as ended:
        generation.main([str(trained / "student"), "--no-pipeline", "--rounds", "1"])
    assert str(ended.value.code).startswith("error: --onnx needs the packages onnxruntime: install them, or facm with")
    assert str(ended.value.code).endswith("; or leave onnxruntime out: --no-onnx")


def test_a_way_that_draws_other_pictures_is_refused():
    images = np.zeros((2, 4, 4, 1), np.uint8)
    right = generation.Way("a", lambda: images)
    near = generation.Way("b", lambda: images + np.uint8(1), "a")
    wrong = generation.Way("c", lambda: images + np.uint8(2), "a")
    assert generation.gate([right, near]) == {"b": 1.0}
    with pytest.raises(generation.Wrong, match="c draws other pictures than a: they differ by 2"):
        generation.gate([right, near, wrong])


SMALL = ("--size", "32", "--num", "5", "--batch", "3", "--rounds", "2")


@pytest.mark.parametrize("codec", encoding.ARCHITECTURES)
def test_encoding_is_measured_beside_the_encoder_alone(codec: str, tmp_path: Path, capsys):
    file = tmp_path / "encoding.json"
    encoding.main(["--codec", codec, *SMALL, "--json", str(file)])
    told, result = capsys.readouterr().out, json.loads(file.read_text())
    assert set(result["samples"]) == {"encoder", "reading", "stage"}
    assert all(len(clocks["wall"]) == 2 for clocks in result["samples"].values())
    assert all(f"| {name} | " in told for name in result["samples"]) and "stage / " in told


def test_a_stage_that_encodes_otherwise_is_refused(tmp_path: Path):
    pictures = encoding.photographs(tmp_path / "pictures", 3, 32)
    codec = codecs.build("sd_vae", vae=str(encoding.random_weights(tmp_path / "vae", SdVae.architecture, 32)))
    runs = encoding.ways(tmp_path / "latents", pictures, codec, 2)
    right = torch.cat(runs["encoder"]())
    encoding.gate(right, runs["stage"], tmp_path / "latents")
    with pytest.raises(generation.Wrong, match="holds other latents than the encoder gives"):
        encoding.gate(right + 1, runs["stage"], tmp_path / "latents")


def test_encoding_by_weights_that_are_not_there_ends_with_a_line(tmp_path: Path):
    with pytest.raises(SystemExit, match="error: .*latents.vae: there is neither a folder nor a file .*gone"):
        encoding.main(["--vae", str(tmp_path / "gone"), *SMALL])
