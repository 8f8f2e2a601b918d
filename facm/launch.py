"""`python -m facm.launch stages.NAME`: one process, or torchrun where the environment asks for several.

The number of processes comes from the environment, never from dvc.yaml, where it would be part of the stage and retrain
it (docs/cluster.md):

* FACM_NPROC: processes per node; 1 where it is not set
* NNODES, NODE_RANK, MASTER_ADDR, MASTER_PORT: several nodes, this command being started once on each; SLURM's names
  (SLURM_STEP_NUM_NODES, SLURM_NODEID) do inside `srun`
* FACM_ON_NODES: the command that starts another one once on every node, such as `srun --ntasks-per-node=1`
* RANK, WORLD_SIZE: this is one process of several, started by torchrun or the like: it just runs
"""

import os
import re
import runpy
import shlex
import sys
import time
from collections.abc import Mapping

PROCESSES, ON_NODES, TRACEBACK = "FACM_NPROC", "FACM_ON_NODES", "FACM_TRACEBACK"
PORT = "29500"
GRACE_S = 5  # for rank 0 to tell an error that all ranks have, before another rank tells its own
SAVE_S = 600  # for a rank to save after a signal, before torchrun kills it


def main(arguments: list[str]) -> None:
    """Run a module as a script, in this process or under torchrun; a user's mistake ends in one line."""
    if len(arguments) != 1:
        raise SystemExit("usage: python -m facm.launch stages.NAME")
    (module,) = arguments
    on_nodes = shlex.split(os.environ.get(ON_NODES, ""))
    if on_nodes and "RANK" not in os.environ:
        del os.environ[ON_NODES]
        os.execvp(on_nodes[0], [*on_nodes, sys.executable, "-m", "facm.launch", module])
    try:
        options = torchrun_options(os.environ)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None
    if options:
        _torchrun([*options, "-m", "facm.launch", module])
    else:
        _run(module)


def torchrun_options(environment: Mapping[str, str]) -> list[str]:
    """How torchrun has to be started on this node; nothing where this process is to do the work.

    Raises:
        ValueError: variables that are missing, no numbers, or contradict each other.
    """
    if ("RANK" in environment) != ("WORLD_SIZE" in environment):
        raise ValueError("RANK and WORLD_SIZE go together: set or unset both")
    if "RANK" in environment:
        if _number(environment, "RANK", least=0) >= _number(environment, "WORLD_SIZE", least=1):
            raise ValueError(f"RANK={environment['RANK']}: must be below WORLD_SIZE={environment['WORLD_SIZE']}")
        return []
    processes = _number(environment, PROCESSES, least=1)
    nodes, node = _nodes(environment)
    if nodes == 1:
        return ["--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    if not node < nodes:
        raise ValueError(f"NODE_RANK={node}: must be below NNODES={nodes}")
    if "MASTER_ADDR" not in environment:
        raise ValueError(f"{nodes} nodes need MASTER_ADDR, the name of the first one (and MASTER_PORT, else {PORT})")
    place = [f"--nnodes={nodes}", f"--node-rank={node}", f"--nproc-per-node={processes}"]
    port = _number({"MASTER_PORT": PORT, **environment}, "MASTER_PORT", least=1)
    return [*place, f"--master-addr={environment['MASTER_ADDR']}", f"--master-port={port}"]


def _nodes(environment: Mapping[str, str]) -> tuple[int, int]:
    """Number of nodes and which one this is."""
    if "NNODES" in environment:
        nodes = _number(environment, "NNODES", least=1)
        if nodes > 1 and "NODE_RANK" not in environment:
            raise ValueError(f"NNODES={nodes} needs NODE_RANK, 0 .. {nodes - 1}")
        return nodes, _number(environment, "NODE_RANK", least=0)
    # Set by srun only: in a batch script itself, this node works alone, however many the job has.
    nodes = _number(environment, "SLURM_STEP_NUM_NODES", least=1)
    tasks = _number(environment, "SLURM_STEP_NUM_TASKS", least=1)
    if tasks != nodes and "SLURM_STEP_NUM_NODES" in environment:
        raise ValueError(
            f"srun started {tasks} tasks on {nodes} nodes: one per node is needed (--ntasks-per-node=1); "
            f"{PROCESSES} sets the processes of a node"
        )
    return nodes, _number(environment, "SLURM_NODEID", least=0)


def _number(environment: Mapping[str, str], name: str, *, least: int) -> int:
    """A variable's value, `least` where it is not set."""
    value = environment.get(name, str(least))
    if not re.fullmatch("[0-9]{1,5}", value) or int(value) < least:  # of processes, nodes and ports
        raise ValueError(f"{name}={value!r}: must be a whole number from {least} to 99999")
    return int(value)


def _torchrun(arguments: list[str]) -> None:
    """Start this node's processes and wait; ends with the exit status of the first that failed, without a report."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import get_args_parser, parse_args, run

    # torchrun would set 1: numpy's sums (KID) would then be others than in one process.
    os.environ.setdefault("OMP_NUM_THREADS", str(len(os.sched_getaffinity(0))))
    known = "--shutdown-timeout" in get_args_parser().format_usage()  # torch 2.11 has it not, and kills after 30 s
    patience = [f"--shutdown-timeout={SAVE_S}"] if known else []
    try:
        run(parse_args([*patience, *arguments]))
    except ChildFailedError as failed:
        raise SystemExit(failed.get_first_failure()[1].exitcode) from None
    except SignalException as stopped:
        raise SystemExit(128 + stopped.sigval) from None


def _run(module: str) -> None:
    """Run the module here."""
    sys.path.insert(0, os.getcwd())
    sys.argv = [module]
    try:
        runpy.run_module(module, run_name="__main__")
    except SystemExit as ended:
        if not ended.code:
            _leave()
        raise
    except (ValueError, OSError, RuntimeError) as error:
        if os.environ.get(TRACEBACK):
            raise
        rank = int(os.environ.get("RANK", "0"))
        if rank:
            time.sleep(GRACE_S)  # torchrun ends this process meanwhile where rank 0 has failed, too
        where = f"{module}, rank {rank}" if rank else module
        raise SystemExit(f"\nerror in {where}: {error}\n({TRACEBACK}=1 shows where)") from None


def _leave() -> None:
    """Leave the process group, where a stage ended early and well: its threads may abort an exit that they outlive."""
    from facm.runtime import dist

    dist.teardown()


if __name__ == "__main__":
    main(sys.argv[1:])
