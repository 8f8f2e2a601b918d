"""Where a checkpoint is: a folder, a bare DVC repository at a revision, with a folder as remote, the hub's cache."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import yaml
from dvc.repo import Repo
from miniature import write_checkpoint, write_latents

import facm
from facm.export import folder as exported
from facm.export import locate, provenance
from facm.export.locate import FetchError
from facm.networks import checkpoint

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def git(folder: Path, *words: str) -> str:
    name = ("-c", "user.name=someone", "-c", "user.email=someone@example.org", "-c", "commit.gpgsign=false")
    return subprocess.run(("git", *name, *words), cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


REMOTE = "[core]\n    analytics = false\n    remote = store\n['remote \"store\"']\n    url = {}\n"


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """work/ (tagged student@v1.0.0, then another student), bare.git and the remote store/, without a cache in work/."""
    folder = tmp_path_factory.mktemp("places")
    data = write_latents(folder / "latents")
    work = folder / "work"
    work.mkdir()
    git(work, "init", "-q", "-b", "main")
    Repo.init(str(work)).close()
    (work / ".dvc/config").write_text(REMOTE.format(folder / "store"))
    for seed, tag in ((1, "student@v1.0.0"), (2, "later")):
        write_checkpoint(folder / f"seed{seed}", data, kind="student", seed=seed)
        shutil.copytree(folder / f"seed{seed}", work / "data/student", dirs_exist_ok=True)
        with Repo(str(work)) as repository:
            repository.add([str(work / "data/student")])
            repository.push()
        git(work, "add", "-A")
        git(work, "commit", "-q", "-m", tag)
        git(work, "tag", tag)
    git(folder, "clone", "-q", "--bare", str(work), str(folder / "bare.git"))
    shutil.rmtree(work / ".dvc/cache")
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FACM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def drawn(*arguments, **options) -> np.ndarray:
    return facm.load(*arguments, **options).generate(range(3), nfe=1)


def refused(*arguments, **options) -> str:
    with pytest.raises(ValueError) as caught:
        facm.load(*arguments, **options)
    return str(caught.value)


def test_a_revision_of_a_repository_is_loaded_from_its_remote_and_kept(places: Path, cache: Path) -> None:
    url = str(places / "bare.git")
    first, second = (drawn(places / f"seed{seed}") for seed in (1, 2))
    assert not np.array_equal(first, second)
    assert np.array_equal(drawn(url, rev="student@v1.0.0"), first)
    assert np.array_equal(drawn(url), second), "the default branch's head"
    assert np.array_equal(drawn(f"file://{url}", path="data/student", rev="student@v1.0.0"), first)
    assert facm.load(url, 0.1, rev="later").config.kind == "student", "the EMA snapshots came along"
    assert sorted(path.name for path in cache.glob("*/*/*")) == ["data--student"] * 3, "nothing half-fetched is left"


def test_a_whole_commit_id_that_was_fetched_needs_no_repository(places: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved.git"
    shutil.copytree(places / "bare.git", moved)
    commit = git(places / "work", "rev-parse", "student@v1.0.0")
    first = drawn(str(moved), rev=commit)
    shutil.rmtree(moved)
    assert np.array_equal(drawn(str(moved), rev=commit), first)
    assert "check the address, the revision and your access" in refused(str(moved), rev="student@v1.0.0")


def test_a_repository_in_a_folder_is_asked_where_a_revision_or_a_path_is_given(places: Path) -> None:
    work = places / "work"
    assert np.array_equal(drawn(work, rev="student@v1.0.0"), drawn(places / "seed1"))
    assert np.array_equal(drawn(work / "data/student"), drawn(places / "seed2")), "a folder is a checkpoint itself"


def test_a_project_in_a_folder_of_its_repository_is_taken_from_that_folder(
    places: Path, tmp_path: Path, cache: Path
) -> None:
    top, project = tmp_path / "top", tmp_path / "top/papers/facm"
    project.mkdir(parents=True)
    git(top, "init", "-q", "-b", "main")
    Repo.init(str(project), subdir=True).close()
    for seed in (1, 2):
        shutil.copytree(places / f"seed{seed}", project / "data/student", dirs_exist_ok=True)
        with Repo(str(project)) as repository:
            repository.add([str(project / "data/student")])
        git(top, "add", "-A")
        git(top, "commit", "-q", "-m", f"seed {seed}")
    first = drawn(places / "seed1")
    assert np.array_equal(drawn(project, rev="HEAD~1"), first), "there is no remote: out of the project's own cache"
    assert np.array_equal(drawn(project, path="data/student"), drawn(places / "seed2"))
    shutil.rmtree(cache)
    (project / ".dvc/config.local").write_text(REMOTE.format("../../../../store"))
    with Repo(str(project)) as repository:
        repository.push(all_commits=True)
    shutil.rmtree(project / ".dvc/cache")
    assert np.array_equal(drawn(project, rev="HEAD~1"), first), "from a remote that only .dvc/config.local names"
    assert "'data/none' cannot be fetched" in refused(project, path="data/none", rev="HEAD")
    assert "unknown Git revision 'nope'" in refused(project, rev="nope")
    (project / ".dvc/config").write_text(REMOTE.format(tmp_path / "store"))
    git(top, "add", "-A")
    git(top, "commit", "-q", "-m", "remote")
    git(tmp_path, "clone", "-q", "--bare", str(top), str(tmp_path / "bare.git"))
    url = str(tmp_path / "bare.git")
    assert np.array_equal(drawn(url, path="papers/facm/data/student", rev="main"), drawn(places / "seed2"))
    assert refused(url, rev="main").endswith("path begins with that: SUBFOLDER/data/student")


def test_what_is_not_there_is_told(places: Path, cache: Path) -> None:
    url = str(places / "bare.git")
    assert f"{url}, revision nope: unknown Git revision 'nope'" in refused(url, rev="nope")
    told = refused(url, path="data/teacher")
    assert "'data/teacher' cannot be fetched" in told and "`dvc push`" in told
    told = refused(url, path="data/student/config.json")
    assert "is a file, not a checkpoint folder: set path, such as data/student" in told
    assert "none.git, revision default branch" in refused(str(places / "none.git"))
    assert not list(cache.glob("*/*/*"))


def test_a_file_is_no_checkpoint_folder(places: Path) -> None:
    told = refused(places / "seed1/config.json")
    assert told.endswith(
        "config.json is a file, not a checkpoint folder; a published file is converted by facm.convert"
    )


def test_what_was_not_pushed_is_told(places: Path, tmp_path: Path) -> None:
    shutil.copytree(places / "bare.git", tmp_path / "bare.git")
    store = places / "store"
    store.rename(places / "away")
    try:
        told = refused(str(tmp_path / "bare.git"), rev="later")
        assert "'data/student' cannot be fetched" in told and "was it pushed (`dvc push`)" in told
    finally:
        (places / "away").rename(store)


def test_a_name_that_is_no_folder_asks_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("asked the hub"))
    told = refused("data/nothing")
    assert told.startswith("data/nothing is no checkpoint: data/nothing/config.json is missing; `dvc pull`")
    assert told.endswith("a repository on the hub is hf://data/nothing")
    told = refused("data/nothing", rev="v1")
    assert "data/nothing is no folder and no address" in told and "hf://OWNER/NAME" in told


@pytest.mark.parametrize("where", ["https://host/x.git", "ssh://host/x", "git@host:team/x.git", "../x.git"])
def test_addresses_of_git_are_known(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple] = []
    monkeypatch.setattr(locate, "_from_dvc", lambda *given: asked.append(given))
    locate.find(where, rev="v1")
    assert asked == [(where, "data/student", "v1")]


@pytest.fixture
def hub(places: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """huggingface_hub offline, with team/digits in its cache: an exported student at its top, a checkpoint in one/."""
    from huggingface_hub import constants

    network, config = checkpoint.load(places / "seed1")
    repository = tmp_path / "hub/models--team--digits"
    exported.write(repository / "snapshots" / COMMIT, network, config)
    shutil.copytree(places / "seed2", repository / "snapshots" / COMMIT / "one")
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text(COMMIT)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return repository


def test_a_repository_of_the_hub_is_loaded_from_its_cache_without_a_network(hub: Path, places: Path) -> None:
    assert np.array_equal(drawn("hf://team/digits"), drawn(places / "seed1"))
    assert np.array_equal(drawn("hf://team/digits", rev=COMMIT), drawn(places / "seed1"))
    assert np.array_equal(drawn("hf://team/digits", path="one"), drawn(places / "seed2"))


def test_what_the_hub_does_not_have_is_told(hub: Path) -> None:
    told = refused("hf://team/other", rev="v2")
    assert told.startswith("hf://team/other, revision v2: neither in huggingface_hub's cache nor to be fetched (")
    assert "HF_HUB_OFFLINE" in told and "HF_TOKEN" in told
    assert refused("hf://team/digits", path="two").endswith("there is no folder two")
    assert refused("hf://digits") == "hf://digits: write hf://OWNER/NAME"
    with pytest.raises(FetchError):
        facm.load("hf://team/other")


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert locate.cache() == tmp_path / "cache"
    monkeypatch.delenv("FACM_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/some/where")
    assert locate.cache() == Path("/some/where/facm")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert locate.cache() == Path.home() / ".cache/facm"


def test_a_folder_s_hash_is_dvc_s(places: Path) -> None:
    written = yaml.safe_load((places / "work/data/student.dvc").read_text())["outs"][0]
    assert written["md5"] == f"{provenance.directory_md5(places / 'seed2')}.dir"
