"""A short training against an exact oracle: a 2 x 2 grid of Gaussians, whose one-step map is known (oracle.Mixture).

Flow matching on the exact velocity, then FACM with that velocity as the teacher, both with MLP 64 x 3. Measured over
seeds 0 to 7 at 500 + 800 steps of 256 points (14 to 18 CPU seconds), root mean square over 4096 points:

    one-step map   identity .962   after flow matching 1.68 to 1.74   after FACM .108 to .225
    velocity       after flow matching .052 to .063                   after FACM .106 to .163

The bounds stand well above these (rounding alone moves a seed between .11 and .19: the map is steep between the modes)
and well below the identity and what a missing derivative or relaxation gives, 1.7.
"""

import math

import torch
from oracle import Mixture
from torch import Tensor, nn

from facm.flow import path
from facm.flow.interface import Point, Progress
from facm.flow.time import TimeSampler
from facm.networks.backbones.mlp import MLP
from facm.objectives.facm import FACM
from facm.objectives.fm import FM
from facm.training.passes import Passes, Student

MAP_BOUND, VELOCITY_BOUND = 0.4, 0.3
LAW = Mixture()


def train(network: nn.Module, objective: FM | FACM, steps: int, seed: int) -> None:
    optimizer, student = torch.optim.Adam(network.parameters()), Student(Passes(network))
    generator = torch.Generator().manual_seed(seed)
    for step in range(1, steps + 1):
        optimizer.param_groups[0]["lr"] = 3e-3 * (1 + math.cos(math.pi * step / steps)) / 2
        student.begin(None)
        loss = sum(term.mean() for term in objective(student, draw(objective, generator)).values())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()


def draw(objective: FM | FACM, generator: torch.Generator, num: int = 256) -> Point:
    """A batch whose velocity is the exact one."""
    x0, x1 = torch.randn(num, 2, generator=generator), LAW.sample(num, generator)
    times = objective.times(torch.randn(num, objective.normals, generator=generator), TimeSampler(), Progress(1, 1))
    x_t = path.interpolate(x0, x1, times["t"])
    return Point(x0=x0, x1=x1, x_t=x_t, y=None, times=times, velocity=lambda x, t, y: LAW.velocity(x, t))


@torch.no_grad()
def map_error(network: nn.Module) -> tuple[float, float]:
    """Distance of the one-step map, and of the identity, from the exact map of noise to data."""
    x0, t = torch.randn(4096, 2, generator=torch.Generator().manual_seed(99)), torch.zeros(4096)
    exact = LAW.flow_map(x0.double(), t.double(), t.double() + 1).float()
    return rms(path.endpoint(x0, t, network(x0, path.c_cm(t, "expanded").t)) - exact), rms(x0 - exact)


@torch.no_grad()
def velocity_error(network: nn.Module) -> float:
    """Distance of the network's answer at c_FM from the exact velocity, t as in training."""
    point = draw(FACM(), torch.Generator().manual_seed(98), 4096)
    return rms(network(point.x_t, path.c_fm(point.t, "expanded").t) - point.v)


def rms(x: Tensor) -> float:
    return x.square().mean().sqrt().item()


def test_a_student_of_the_exact_velocity_learns_the_exact_one_step_map_and_keeps_the_velocity():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = MLP(shape=(2,), num_classes=0, hidden=64, depth=3)
    train(network, FM(), 500, seed=0)
    before, identity = map_error(network)
    assert before > identity > 2 * MAP_BOUND
    train(network, FACM(), 800, seed=100)
    assert map_error(network)[0] < MAP_BOUND
    assert velocity_error(network) < VELOCITY_BOUND
