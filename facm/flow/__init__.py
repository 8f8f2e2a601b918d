"""The mathematics of the paper, as functions of tensors; here is what an objective imports."""

from facm.flow.interface import Answers, FTheta, Network, Objective, Point, Progress, Query
from facm.flow.losses import cosine_loss, norm_l2, pseudo_huber, rms, squared_error, velocity_loss
from facm.flow.path import Condition, average_velocity, c_cm, c_fm, check_conditioning, endpoint, expand, interpolate
from facm.flow.time import TIME_SAMPLERS, WEIGHTINGS, TimeSampler, karras, sigma_of, time_of, two_times, weighting

__all__ = [
    "TIME_SAMPLERS",
    "WEIGHTINGS",
    "Answers",
    "Condition",
    "FTheta",
    "Network",
    "Objective",
    "Point",
    "Progress",
    "Query",
    "TimeSampler",
    "average_velocity",
    "c_cm",
    "c_fm",
    "check_conditioning",
    "cosine_loss",
    "endpoint",
    "expand",
    "interpolate",
    "karras",
    "norm_l2",
    "pseudo_huber",
    "rms",
    "sigma_of",
    "squared_error",
    "time_of",
    "two_times",
    "velocity_loss",
    "weighting",
]
