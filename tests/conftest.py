"""One thread per process: the tensors of the tests are small, and the tests run in several processes."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

torch.set_num_threads(1)
