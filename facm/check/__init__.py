"""Everything in params.yaml that can be refused before any work: names against registries, blocks against classes.

`python -m facm.check` does the same from the shell. Every stage calls `read` first, for the whole file, so that a
mistake under `distill` is told before the teacher is trained. What does not go together stands in rules.py, what the
file chooses in choices.py, files and networks that are missing or do not fit in inputs.py.
"""

import os
import shutil
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

import torch

from facm.check.choices import backbone as backbone
from facm.check.choices import build_objective
from facm.check.choices import codec_options as codec_options
from facm.check.choices import precond as precond
from facm.check.rules import broken
from facm.check.rules import student_sampler as student_sampler
from facm.networks import backbones, lpips
from facm.runtime import dist, params
from facm.runtime.params import PATH, Params, ParamsError, outputs
from facm.runtime.paths import located

MADE_HERE = ("data/teacher", "data/latents")  # what distill.teacher may name, whatever dvc.yaml says
SIDES = (32, 64, 16, 128, 8, 256, 28, 4, 2, 1)  # of latents over the patch size, on which `buildable` tries a network


def read(path: str | Path = PATH) -> Params:
    """params.yaml, checked as far as it can be without data.

    Raises:
        ParamsError: names value, rule and place.
    """
    read_params = params.read(path)
    check(read_params)
    return read_params


def check(p: Params) -> None:
    """Raise ParamsError for the first rule that is broken."""
    for message in broken(p):
        raise ParamsError(message)


def buildable(p: Params) -> None:
    """Raise ParamsError where the backbone's constants make no network, whatever the latents' side.

    It is built without values (torch's device meta), on sides of which one suits every published network.
    """
    name, constants = backbone(p)
    patch, first = constants.get("patch_size", 1), None
    shapes = [(2,)] if name in backbones.POINTS else [(4, patch * side, patch * side) for side in SIDES]
    for shape in shapes:
        try:
            with torch.device("meta"):
                network = backbones.build(name, constants, shape=shape, num_classes=1, auxiliary=True)
            empty = [key for key, weight in network.named_parameters() if not weight.numel()]
            if not empty:
                return
            first = ParamsError(f"{PATH}, backbones.{name}: no network has these constants ({empty[0]} is empty)")
        except ValueError as error:
            first = first or ParamsError(str(error))
        except (RuntimeError, ArithmeticError, TypeError, IndexError) as error:  # torch's own, of sizes it cannot have
            first = first or ParamsError(f"{PATH}, backbones.{name}: no network has these constants ({error})")
    raise first or ParamsError(f"{PATH}, backbones.{name}: no network has these constants")


def compilable(device: torch.device) -> None:
    """Raise FileNotFoundError where torch.compile lacks what it builds code for a CPU with."""
    compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")  # torch._inductor.config
    header = Path(sysconfig.get_path("include"), "Python.h")
    place = f"{PATH}, train.compile: true needs"
    if device.type == "cpu" and shutil.which(compiler) is None:
        raise FileNotFoundError(
            f"{place} a C++ compiler on a CPU, and there is no {compiler}: install it (Debian and Ubuntu: g++, Fedora: "
            "gcc-c++), or name another in the environment variable CXX, or set it false"
        )
    if device.type == "cpu" and not header.is_file():
        raise FileNotFoundError(
            f"{place} Python's headers on a CPU, and there is no {header}: install them (Debian and Ubuntu: "
            "python3-dev, Fedora: python3-devel), or set it false"
        )


def at_hand(p: Params) -> None:
    """Raise where what a training needs and no stage makes is not there, or is another file.

    Raises:
        FileNotFoundError: a teacher that is no checkpoint folder, no compiler for `train.compile`, or as
            `facm.networks.lpips.find_weights` does.
        ValueError: likewise.
    """
    if p.train.compile:
        compilable(dist.device())
    if "lpips" in build_objective(p).tools:
        lpips.find_weights()
    made_here = (*MADE_HERE, *outputs(None))
    if p.distill.teacher not in made_here and not (located(p.distill.teacher) / "config.json").is_file():
        raise FileNotFoundError(
            f"{PATH}, distill.teacher: {p.distill.teacher} is no checkpoint folder (no config.json in it): set it to "
            "data/teacher, or to one that is there"
        )


def fits(p: Params, shape: Sequence[int]) -> None:
    """Raise ParamsError for what latents (C, H, W) do not allow, under `teacher` and `distill` alike."""
    name = p.distill.objective
    cosines = {"teacher.cosine": p.teacher.cosine, f"objectives.{name}.cosine": p.objectives[name].get("cosine")}
    for place, cosine in cosines.items():
        if cosine == "channel" and shape[0] == 1:
            raise ParamsError(
                f"{PATH}, {place}: 'channel' with latents of one channel: the cosine of one number is +-1 and has no "
                "gradient; set auto or sample"
            )


def writable(*folders: str | Path) -> None:
    """Raise PermissionError, naming the folder, unless each can be written (made, where it is missing)."""
    for folder in map(Path, folders):
        place = folder
        while not place.exists():
            place = place.parent
        if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
            raise PermissionError(
                f"{place} cannot be written, but {folder} must be made there: change its owner or mode"
            )
