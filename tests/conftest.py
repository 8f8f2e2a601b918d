"""One thread per process: the tensors of the tests are small, and the tests run in several processes.

Signals that the shell has switched off (nohup, jobs in the background) are switched on: tests send them.
"""

import os
import signal

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

torch.set_num_threads(1)

for kind, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(kind) is signal.SIG_IGN:
        signal.signal(kind, handler)
