"""docs/sharing.md is true: what one clone has run reaches another one, and nothing runs twice.

The pipeline is ours, with DVC's part of it unchanged; its stages are stubs that write small files (tests/stub.py).
"""

import getpass
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from clone import Clone, copy, own_cache, ran, restored
from team import Team, commands

pytestmark = pytest.mark.slow
STUDENT = "data/student/one.tsv"
SSHD = Path("/usr/sbin/sshd")


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Team:
    """A team whose first member has run and published the pipeline, and then an experiment."""
    made = Team(tmp_path_factory.mktemp("team"))
    assert len(ran(made.first.dvc("repro"))) == 8
    made.first.commit()
    made.first.git("push", "-q", "origin", "HEAD")
    made.first.dvc("push")
    output = made.first.dvc("exp", "run", "-n", "cos", "-S", "distill.alpha=cos")
    assert ran(output) == ["distill", "sample", "evaluate", "report"]
    made.first.dvc("push", "--run-cache")
    return made


class Remote:
    """A remote as the page sets it up, and what an account there needs.

    Attributes:
        settings: arguments of the `dvc` commands.
        variables: of the environment.
    """

    def __init__(self, marker: str, values: dict[str, str], variables: dict[str, str]):
        self.settings, self.variables = commands(marker, values), variables

    def publish(self, team: Team) -> None:
        """The first member sets it up in the place of the one before, and pushes all there is."""
        first = team.first
        own_cache(first)  # and no `--local` settings of the remote before
        first.dvc("remote", "remove", "team")
        for words in self.settings:
            first.dvc(*words)
        first.git("commit", "-q", "-m", "remote", ".dvc/config")
        first.git("push", "-q", "origin", "HEAD")
        assert "pushed" in first.dvc("push", "--run-cache", "--all-branches", variables=self.variables)

    def prove(self, team: Team, name: str) -> None:
        """A further clone, with its own account: pull, no stage runs; what the first one has tried is restored."""
        clone = team.clone(name)
        for words in self.settings:
            if "--local" in words:
                clone.dvc(*words)
        assert_complete(clone, self.variables)
        before = clone.read(STUDENT)
        clone.set("distill.alpha", "cos")
        output = clone.dvc("repro", "--pull", "sample", variables=self.variables)
        assert (restored(output), ran(output)) == (["distill", "sample"], [])
        assert clone.read(STUDENT) == team.first.read(STUDENT) != before


def assert_complete(clone: Clone, variables: dict[str, str] | None = None) -> None:
    """After a pull, no stage runs."""
    assert "fetched" in clone.dvc("pull", variables=variables)
    output = clone.dvc("repro")
    assert ran(output) == restored(output) == [] and "Data and pipelines are up to date" in output


def test_a_folder_carries_results_and_experiments(team: Team) -> None:
    second = team.clone("second")
    assert_complete(second)
    team.first.dvc("exp", "push", "origin", "cos")
    for words in (("exp", "pull", "origin", "cos"), ("exp", "apply", "cos")):
        second.dvc(*words)
    assert second.read(STUDENT) == team.first.read(STUDENT)
    output = second.dvc("repro")
    assert ran(output) == restored(output) == []


def test_the_same_experiment_is_restored_in_a_clone_that_was_never_pulled(team: Team) -> None:
    third = team.clone("third")
    output = third.dvc("exp", "run", "--pull", "-S", "distill.alpha=cos")
    assert (restored(output), ran(output)) == (["distill", "sample", "report"], ["evaluate"])
    assert third.read(STUDENT) == team.first.read(STUDENT)


@pytest.mark.parametrize(("key", "values"), [("data.side", "48"), ("backbones.lightningdit.variant", "'B/2'")])
def test_another_size_is_another_run(key: str, values: str, team: Team) -> None:
    """DVC's run cache does not see keys that are called size."""
    clone = copy(team.first, team.folder / key)
    clone.set(key, values)
    output = clone.dvc("repro", "distill")
    assert ran(output)[-2:] == ["teacher", "distill"] and restored(output) == []


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture
def sshd(tmp_path: Path) -> Iterator[tuple[int, Path]]:
    """OpenSSH's server on a port of this machine, with keys that are thrown away; port, and the user's key."""
    if not SSHD.exists():
        assert not os.environ.get("CI"), f"{SSHD} is missing: install openssh-server"
        pytest.skip(f"needs {SSHD}")
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / name)], check=True)
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # which Debian's would make for its service
    port, config = free_port(), tmp_path / "config"
    config.write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {tmp_path}/host\nAuthorizedKeysFile {tmp_path}/user.pub\n"
        "PidFile none\nUsePAM no\nStrictModes no\nPasswordAuthentication no\nPermitRootLogin prohibit-password\n"
        "Subsystem sftp internal-sftp\n"
    )
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen([SSHD, "-D", "-e", "-f", config], stderr=log)
    try:
        end = time.monotonic() + 10
        while "Server listening" not in (tmp_path / "log").read_text():
            assert process.poll() is None and time.monotonic() < end, (tmp_path / "log").read_text()
            time.sleep(0.02)
        yield port, tmp_path / "user"
    finally:
        process.terminate()
        process.wait()


def test_a_server_with_ssh_carries_results_and_runs(team: Team, sshd: tuple[int, Path]) -> None:
    port, key = sshd
    place = f"ssh://127.0.0.1:{port}{team.folder}/served"
    values = {"ssh://server/srv/facm": place, "me": getpass.getuser(), "~/.ssh/id_ed25519": str(key)}
    remote = Remote("ssh", values, {"HOME": str(key.parent)})
    remote.publish(team)
    remote.prove(team, "over-ssh")
    assert len(list((team.folder / "served/files/md5").rglob("*"))) > 20


@pytest.fixture
def s3() -> Iterator[str]:
    """A server that speaks S3, with an empty bucket `team`; its URL."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        url = "http://{}:{}".format(*server.get_host_and_port())
        keys = {"aws_access_key_id": "anyone", "aws_secret_access_key": "any", "region_name": "us-east-1"}
        boto3.client("s3", endpoint_url=url, **keys).create_bucket(Bucket="team")
        yield url
    finally:
        server.stop()


def test_an_s3_server_carries_results_and_runs(team: Team, s3: str) -> None:
    variables = {"AWS_ACCESS_KEY_ID": "anyone", "AWS_SECRET_ACCESS_KEY": "any", "AWS_DEFAULT_REGION": "us-east-1"}
    remote = Remote("s3", {"https://s3.example.org": s3}, variables | {"NO_PROXY": "127.0.0.1"})
    remote.publish(team)
    remote.prove(team, "over-s3")


def test_clones_with_one_cache_restore_what_any_of_them_has_run(team: Team) -> None:
    settings = commands("cache", {"/mnt/team/dvc-cache": str(team.folder / "cache")})
    members = [team.clone("one"), team.clone("two")]
    for member in members:
        (member.root / ".dvc/config.local").unlink()
        for words in settings:
            member.dvc(*words)
    assert ran(members[0].dvc("repro", "teacher")) == ["latents", "teacher"]
    output = members[1].dvc("repro", "teacher")
    assert ran(output) == [] and members[1].read("data/teacher/one.tsv") == members[0].read("data/teacher/one.tsv")
    assert (team.folder / "cache/files/md5").stat().st_mode & 0o2070 == 0o2070, "the group may write"


def test_the_shipped_settings_make_copies_although_the_machine_s_ask_for_links(team: Team) -> None:
    settings = team.folder / "settings"
    settings.mkdir()
    (settings / "config").write_text("[cache]\n    type = hardlink\n")
    clone = team.clone("copies")
    asked = {"DVC_GLOBAL_CONFIG_DIR": str(settings)}
    clone.dvc("repro", "latents", variables=asked)
    (clone.root / "data/latents/one.tsv").unlink()
    clone.dvc("checkout", "latents", variables=asked)
    path = clone.root / "data/latents/one.tsv"
    assert path.stat().st_nlink == 1 and not path.is_symlink()
    path.write_text("written through?")
    assert clone.damaged_in_cache() == []
