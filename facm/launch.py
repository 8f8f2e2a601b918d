"""`python -m facm.launch stages.NAME`: one process, or torchrun where the environment asks for several.

The number of processes comes from FACM_NPROC, never from dvc.yaml, where it would be part of the stage and retrain it.
Only stages that train share their work; all others run in one process whatever FACM_NPROC says.
"""

import os
import runpy
import sys

PROCESSES, TRACEBACK = "FACM_NPROC", "FACM_TRACEBACK"
SHARED = ("stages.teacher", "stages.distill")


def main(arguments: list[str]) -> None:
    """Run a module as a script, in this process or under torchrun; a user's mistake ends in one line."""
    if len(arguments) != 1:
        raise SystemExit("usage: python -m facm.launch stages.NAME")
    processes = os.environ.get(PROCESSES, "1")
    if not processes.isdigit() or int(processes) < 1:
        raise SystemExit(f"error: {PROCESSES}={processes!r}: must be a number of processes, 1 or more")
    module = arguments[0]
    if int(processes) > 1 and module in SHARED and "RANK" not in os.environ:
        command = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        os.execv(sys.executable, [sys.executable, *command, "-m", "facm.launch", module])
    sys.path.insert(0, os.getcwd())
    sys.argv = [module]
    if os.environ.get(TRACEBACK):
        runpy.run_module(module, run_name="__main__")
        return
    try:
        runpy.run_module(module, run_name="__main__")
    except (ValueError, OSError, RuntimeError) as error:
        raise SystemExit(f"\nerror in {module}: {error}\n({TRACEBACK}=1 shows where)") from None


if __name__ == "__main__":
    main(sys.argv[1:])
