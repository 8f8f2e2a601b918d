"""`python -m facm.launch`: in this process or under torchrun, on one node or several, and how it refuses."""

import argparse
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch.distributed.run

from facm import launch
from facm.launch import torchrun_options

ROOT = Path(__file__).parents[2]
TOLD = "import os; from pathlib import Path; Path('rank' + os.environ['RANK']).write_text(os.environ['WORLD_SIZE'])"
SLURM = {"SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_NUM_TASKS": "2", "SLURM_NODEID": "1", "MASTER_ADDR": "first"}


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Write a stage with this body; returns its name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "argv", ["launch"])

    def write(body: str) -> str:
        (tmp_path / "tried.py").write_text(body)
        sys.modules.pop("tried", None)
        return "tried"

    return write


def started(name: str, **variables: str) -> subprocess.Popen[str]:
    """`python -m facm.launch NAME` with these variables set."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("FACM", "SLURM", "MASTER"))}
    return subprocess.Popen(
        [sys.executable, "-m", "facm.launch", name],
        env=clean | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""} | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit status and output."""
    output, _ = process.communicate(timeout=120)
    return process.returncode, output


def test_launch_runs_a_module_of_this_folder_as_a_script(module, capsys) -> None:
    launch.main([module("import sys\nif __name__ == '__main__': print('ran', sys.argv)")])
    assert capsys.readouterr().out == "ran ['tried']\n"


@pytest.mark.parametrize("kind", ["ValueError", "FileNotFoundError", "PermissionError", "RuntimeError"])
def test_launch_ends_a_users_mistake_in_one_line(kind: str, module, monkeypatch) -> None:
    name = module(f"raise {kind}('params.yaml, distill: wrong')")
    with pytest.raises(SystemExit) as caught:
        launch.main([name])
    assert str(caught.value) == "\nerror in tried: params.yaml, distill: wrong\n(FACM_TRACEBACK=1 shows where)"
    monkeypatch.setenv("FACM_TRACEBACK", "1")
    with pytest.raises((ValueError, OSError, RuntimeError), match="wrong"):
        launch.main([name])


def test_launch_shows_where_a_mistake_of_the_program_is(module) -> None:
    with pytest.raises(KeyError):
        launch.main([module("{}['key']")])


def test_launch_needs_one_module_and_says_what_is_wrong_in_one_line(monkeypatch) -> None:
    with pytest.raises(SystemExit, match=r"usage: python -m facm.launch stages.NAME"):
        launch.main([])
    monkeypatch.setenv("FACM_NPROC", "two")
    with pytest.raises(SystemExit, match=r"^error: FACM_NPROC='two': must be a whole number from 1 to 99999$"):
        launch.main(["stages.teacher"])
    for name, value in (("FACM_NPROC", "²"), ("FACM_NPROC", "9" * 30), ("NNODES", "٢"), ("RANK", "-1"), ("RANK", "²")):
        with pytest.raises(ValueError, match=f"^{name}='{value}': must be a whole number from"):
            launch.torchrun_options({"WORLD_SIZE": "2"} | {name: value} if name == "RANK" else {name: value})
    with pytest.raises(ValueError, match="RANK=2: must be below WORLD_SIZE=2"):
        launch.torchrun_options({"RANK": "2", "WORLD_SIZE": "2"})
    with pytest.raises(ValueError, match="MASTER_PORT='http': must be a whole number from 1"):
        launch.torchrun_options(TWO_NODES | {"MASTER_PORT": "http"})


ONE_NODE = {"FACM_NPROC": "4"}
TWO_NODES = {"NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "first"}


@pytest.mark.parametrize(
    ("environment", "options"),
    [
        ({}, []),
        ({"FACM_NPROC": "1"}, []),
        (ONE_NODE, ["--standalone", "--nproc-per-node=4"]),
        ({"RANK": "3", "WORLD_SIZE": "4", **ONE_NODE, **TWO_NODES}, []),
        (
            TWO_NODES,
            ["--nnodes=2", "--node-rank=1", "--nproc-per-node=1", "--master-addr=first", "--master-port=29500"],
        ),
        (
            SLURM | {"FACM_NPROC": "8", "MASTER_PORT": "7"},
            ["--nnodes=2", "--node-rank=1", "--nproc-per-node=8", "--master-addr=first", "--master-port=7"],
        ),
        ({"SLURM_JOB_NUM_NODES": "2", "SLURM_NODEID": "0"}, []),  # a batch script itself
        ({"SLURM_JOB_NUM_NODES": "2", "SLURM_NODEID": "0", **ONE_NODE}, ["--standalone", "--nproc-per-node=4"]),
        ({"NNODES": "1", **SLURM}, []),
    ],
    ids=str,
)
def test_the_environment_says_how_many_processes_there_are(environment: dict, options: list[str]) -> None:
    assert torchrun_options(environment) == options


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        *(({"FACM_NPROC": value}, f"FACM_NPROC='{value}': must be a whole") for value in ("two", "0", "-1", "")),
        ({"RANK": "1"}, "RANK and WORLD_SIZE go together"),
        ({"NNODES": "2", "MASTER_ADDR": "first"}, r"NNODES=2 needs NODE_RANK, 0 \.\. 1"),
        ({"NNODES": "2", "NODE_RANK": "2", "MASTER_ADDR": "first"}, "NODE_RANK=2: must be below NNODES=2"),
        ({"NNODES": "2", "NODE_RANK": "0"}, "2 nodes need MASTER_ADDR"),
        (SLURM | {"SLURM_STEP_NUM_TASKS": "8"}, r"srun started 8 tasks on 2 nodes: one per node is needed"),
    ],
    ids=str,
)
def test_an_environment_that_contradicts_itself_is_refused(environment: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        torchrun_options(environment)


@pytest.mark.parametrize("since", ["torch 2.11", "later"])
def test_torchrun_is_asked_for_time_to_save_where_it_knows_that_option(since: str, monkeypatch) -> None:
    def parser() -> argparse.ArgumentParser:
        made = argparse.ArgumentParser()
        for flag in ("--standalone", "-m"):
            made.add_argument(flag, action="store_true")
        made.add_argument("--nproc-per-node", "--nproc_per_node")
        if since == "later":
            made.add_argument("--shutdown-timeout", "--shutdown_timeout", type=int)
        made.add_argument("training_script")
        made.add_argument("training_script_args", nargs=argparse.REMAINDER)
        return made

    ran: list[argparse.Namespace] = []
    monkeypatch.setattr(torch.distributed.run, "get_args_parser", parser)
    monkeypatch.setattr(torch.distributed.run, "run", ran.append)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("FACM_NPROC", "2")
    launch.main(["stages.teacher"])
    (asked,) = ran
    assert (asked.standalone, asked.nproc_per_node) == (True, "2")
    assert (asked.training_script, asked.training_script_args) == ("facm.launch", ["stages.teacher"])
    assert getattr(asked, "shutdown_timeout", None) == (launch.SAVE_S if since == "later" else None)


LEAVING = """
import atexit, os
from pathlib import Path
import torch.distributed
from facm.runtime import dist
dist.setup(1)
told = Path("joined" + os.environ["RANK"])
atexit.register(lambda: told.write_text(str(torch.distributed.is_initialized())))
raise SystemExit(0)
"""


def test_a_stage_that_ends_early_and_well_leaves_the_process_group(module, tmp_path: Path) -> None:
    run = started(module(LEAVING), FACM_NPROC="2")
    assert run.wait(60) == 0
    assert [(tmp_path / f"joined{rank}").read_text() for rank in range(2)] == ["False", "False"]


def test_an_error_of_all_processes_is_told_once(module) -> None:
    status, output = ended(started(module("raise ValueError('params.yaml, distill: wrong')"), FACM_NPROC="2"))
    assert status == 1 and output.count("params.yaml, distill: wrong") == 1
    assert "error in tried: params.yaml" in output and "Traceback" not in output


def test_an_error_of_one_process_ends_the_others_and_names_its_rank(module) -> None:
    body = "import os, time\nif os.environ['RANK'] == '1': raise OSError('the disk is full')\ntime.sleep(100)"
    status, output = ended(started(module(body), FACM_NPROC="2"))
    assert status == 1 and output.count("error in tried, rank 1: the disk is full") == 1 and "Traceback" not in output


def test_a_signal_reaches_the_processes_and_the_status_tells(module, tmp_path: Path) -> None:
    body = "import os, signal, sys, time\nfrom pathlib import Path\nrank = os.environ['RANK']\n"
    body += "signal.signal(signal.SIGTERM, lambda *_: (Path('saved' + rank).touch(), sys.exit(130)))\n"
    process = started(module(body + "Path('ready' + rank).touch()\ntime.sleep(100)"), FACM_NPROC="2")
    while len(list(tmp_path.glob("ready*"))) < 2:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    status, output = ended(process)
    assert status == 128 + signal.SIGTERM and "Traceback" not in output, output
    assert sorted(path.name for path in tmp_path.glob("saved*")) == ["saved0", "saved1"]


def test_two_nodes_find_each_other_by_the_standard_variables(module, tmp_path: Path) -> None:
    """Two agents on one machine, two processes each; the second is started as srun would."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "FACM_NPROC": "2"}
    name = module(TOLD)
    first = started(name, NNODES="2", NODE_RANK="0", **place)
    second = started(name, **SLURM | place)
    assert [ended(first)[0], ended(second)[0]] == [0, 0]
    assert {path.name: path.read_text() for path in tmp_path.glob("rank*")} == {f"rank{i}": "4" for i in range(4)}


def test_a_command_can_start_the_stage_on_every_node(module, tmp_path: Path) -> None:
    """A stand-in for srun runs its command once per node."""
    srun = tmp_path / "srun"
    srun.write_text(
        "#!/bin/sh\n[ $1 = --ntasks-per-node=1 ] && shift || exit 9\nexport SLURM_STEP_NUM_NODES=2 "
        'SLURM_STEP_NUM_TASKS=2\nSLURM_NODEID=1 "$@" & SLURM_NODEID=0 "$@" && wait $!\n'
    )
    srun.chmod(0o755)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    status, output = ended(started(module(TOLD), FACM_ON_NODES=f"{srun} --ntasks-per-node=1", **place))
    assert status == 0, output
    assert {path.name: path.read_text() for path in tmp_path.glob("rank*")} == {"rank0": "2", "rank1": "2"}
