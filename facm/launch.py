"""`python -m facm.launch stages.NAME`: one process, or torchrun where the environment asks for several.

The number of processes comes from FACM_NPROC, never from dvc.yaml, where it would be part of the stage and retrain it.
"""

import os
import runpy
import sys

VARIABLE = "FACM_NPROC"


def main(arguments: list[str]) -> None:
    """Run a module as a script, in this process or under torchrun."""
    if len(arguments) != 1:
        raise SystemExit("usage: python -m facm.launch stages.NAME")
    processes = os.environ.get(VARIABLE, "1")
    if not processes.isdigit() or int(processes) < 1:
        raise SystemExit(f"{VARIABLE}={processes!r}: must be a number of processes, 1 or more")
    module = arguments[0]
    if int(processes) > 1:
        command = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m", module]
        os.execv(sys.executable, [sys.executable, *command])
    sys.path.insert(0, os.getcwd())
    sys.argv = [module]
    runpy.run_module(module, run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1:])
