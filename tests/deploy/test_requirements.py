"""The locked requirements of the images: whether they are the project's, and at the versions that are tested."""

import re
import tomllib

import pytest
from manifests import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

FOLDER = ROOT / "deploy" / "requirements"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCKS = ("build", "executor", "scheduler")


def names(file: str) -> set[str]:
    """The packages that a list for people asks for."""
    lines = (FOLDER / file).read_text().splitlines()
    wanted = (line for line in lines if line and not line.startswith("#"))
    return {canonicalize_name(Requirement(line).name) for line in wanted}


def pins(text: str) -> dict[str, str]:
    """Versions by package."""
    return {
        canonicalize_name(name): version
        for name, version in re.findall(r"^([\w.-]+)==([^\s;]+)", text, re.MULTILINE)
    }


def test_the_images_have_all_that_the_project_needs_between_them() -> None:
    extras = [line for extra in ("guided", "metrics") for line in PROJECT["optional-dependencies"][extra]]
    needed = {canonicalize_name(Requirement(line).name) for line in [*PROJECT["dependencies"], *extras]}
    # No service imports transformers; the import contracts hold that.
    assert needed - {"transformers"} <= names("scheduler.in") | names("executor.in") | names("torch.txt")
    assert names("scheduler.in") <= needed
    assert "torch" not in pins((FOLDER / "scheduler.txt").read_text())


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_has_what_is_asked_for_by_hash_at_the_versions_of_the_constraints(lock: str) -> None:
    text = (FOLDER / f"{lock}.txt").read_text()
    locked, constraints = pins(text), pins((ROOT / "constraints.txt").read_text())
    assert names(f"{lock}.in") <= locked.keys()
    for name in locked.keys() & constraints.keys():
        assert locked[name] == constraints[name], name
    assert all(
        "--hash=sha256:" in entry for entry in re.split(r"^(?=[\w.-]+==)", text, flags=re.MULTILINE)[1:]
    )


def test_torch_is_the_version_that_is_tested() -> None:
    constraints = pins((ROOT / "constraints.txt").read_text())
    assert pins((FOLDER / "torch.txt").read_text())["torch"] == constraints["torch"]
