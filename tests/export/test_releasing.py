"""docs/sharing.md, followed from scratch: a release is tagged and pushed in one clone, and used without any."""

import shlex
import shutil
from pathlib import Path

import pytest
import yaml
from clone import PYTHON, SOURCE, Clone, ran
from documents import among, fenced
from miniature import write_checkpoint, write_latents
from team import Team

PAGE = (SOURCE / "docs/sharing.md").read_text()
URL = "https://example.org/team/facm.git"


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Team:
    """A team whose pipeline makes a small student that works."""
    made = Team(tmp_path_factory.mktemp("team"))
    folder = made.first.root / ".git/made"
    data = write_latents(folder / "latents", num=20, classes=10, side=8)
    write_checkpoint(folder / "data/student", data, kind="student")
    return made


@pytest.fixture(scope="module")
def user(team: Team) -> Clone:
    """A folder of somebody who has no clone, after the release was made as the page says."""
    (block,) = among(fenced(PAGE), "release")
    for words in block.commands:
        output = team.first.run(*words)
        if words == ["dvc", "repro"]:
            assert len(ran(output)) == 8
    elsewhere = team.folder / "elsewhere"
    elsewhere.mkdir()
    return Clone(elsewhere)


@pytest.mark.slow
def test_a_release_that_was_made_as_the_page_says_is_used_as_it_says(team: Team, user: Clone) -> None:
    ours = {"PYTHONPATH": str(SOURCE)}
    shell, script = among(fenced(PAGE), "use")
    for words in shell.commands:
        assert URL in words or words[0] == "python", shlex.join(words)
        user.run(*(str(team.git) if word == URL else word for word in words), variables=ours)
    made = {path.name for path in user.root.iterdir()}
    assert made >= {"student", "student-1.0", "samples", "digits.png"}
    weights = "data/student/model.safetensors"
    assert user.read("student/model.safetensors") == user.read("student-1.0/model.safetensors")
    assert user.read("student/model.safetensors") == team.first.read(weights)
    says = "\nassert where['path'] == 'data/student' and len(where['rev']) == 40, where"
    says += "\nassert figures and params['distill']['alpha'], (figures, params)"
    says += "\nassert images.shape == (3, 8, 8, 1)"
    user.run(PYTHON, "-c", script.text.replace(URL, str(team.git)) + says, variables=ours)
    assert user.read("weights/model.safetensors") == team.first.read(weights)


@pytest.mark.slow
def test_the_page_s_messages_are_those_that_a_user_sees(team: Team, user: Clone) -> None:
    get = ("artifacts", "get", str(team.git))
    assert "Unable to find artifact 'teacher'" in user.dvc(*get, "teacher", fails=True)
    shutil.move(team.folder / "remote", team.folder / "away")
    try:
        told = user.dvc("get", str(team.git), "data/student", "--rev", "student@v1.0.0", "-o", "again", fails=True)
    finally:
        shutil.move(team.folder / "away", team.folder / "remote")
    assert "failed to load directory" in told or "No storage files available" in told, told


def test_both_models_are_artifacts_that_the_pipeline_makes() -> None:
    pipeline = yaml.safe_load(Path(SOURCE / "dvc.yaml").read_text())
    made = {out for stage in pipeline["stages"].values() for out in stage["outs"]}
    for name, artifact in pipeline["artifacts"].items():
        assert (
            artifact["path"] in made and artifact["type"] == "model" and artifact["meta"] == {"license": "Apache-2.0"}
        )
        assert f"`{name}` ({artifact['path']})" in PAGE
