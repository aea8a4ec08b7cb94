"""The files that say the same thing twice say the same thing."""

import importlib.metadata
import re
import subprocess
import tomllib
from itertools import chain

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from tools import ROOT, bootstrap

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
REQUIREMENTS = {
    canonicalize_name(requirement.name): requirement
    for requirement in map(Requirement, chain(PROJECT["dependencies"], *EXTRAS.values()))
}
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
TARGETS = re.findall(r"^([a-z-]+):.*## ", MAKEFILE, re.M)
TEXTS = [
    ROOT / ".ci" / "run",
    *sorted((ROOT / ".github").rglob("*.yml")),
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "site").glob("*.md")),
]


def test_conda_installs_what_pip_installs():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    assert environment["channels"] == ["conda-forge"]
    *conda, pip = environment["dependencies"]
    assert conda == [f"python{PROJECT['requires-python']}", "pip"]
    first, *named, last = pip["pip"]
    assert first == "-c constraints.txt"
    assert last == "-e .[course,test]"
    names = []
    for requirement in map(Requirement, named):
        names.append(requirement.name)
        assert requirement == REQUIREMENTS[requirement.name]
    assert names == ["jupyterlab", "torch", "matplotlib", "nbval", "einops"]


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a clone")
def test_sources_are_the_same_bytes_whatever_git_is_told():
    line = ["git", "-c", "core.autocrlf=true", "check-attr", "text", "eol", "--", "README.md"]
    said = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert said == "README.md: text: auto\nREADME.md: eol: lf\n"


def test_the_constraints_are_exact_and_within_the_ranges():
    pins = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            name, version = line.split("==")
            pins[canonicalize_name(name)] = version
    assert pins["torch"] == "2.13.0"
    for name, requirement in REQUIREMENTS.items():
        assert requirement.specifier.contains(pins[name]), name


def test_every_pin_holds_for_the_oldest_python_and_the_next_ones():
    refused = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        name, _, version = line.partition("==")
        try:
            metadata = importlib.metadata.metadata(name)
        except (importlib.metadata.PackageNotFoundError, ValueError):
            continue  # a comment, or for another system
        assert metadata["Version"].partition("+")[0] == version, name
        asked = SpecifierSet(metadata.get("Requires-Python") or "")  # some name none
        if bad := [python for python in ("3.11.0", "3.12.0", "3.13.0") if python not in asked]:
            refused[line] = bad
    assert refused == {}


def test_the_set_up_asks_for_known_extras_and_the_same_python():
    assert set(bootstrap.EXTRAS.split(",")) <= set(EXTRAS)
    assert PROJECT["requires-python"] == ">={}.{}".format(*bootstrap.OLDEST)


def is_module(name):
    path = ROOT / name.replace(".", "/")
    return path.with_suffix(".py").is_file() or (path / "__main__.py").is_file()


def test_every_make_target_is_explained_and_names_a_module():
    phony = MAKEFILE.partition(".PHONY:")[2].partition("\n\n")[0].replace("\\", "").split()
    assert phony == TARGETS
    for module in re.findall(r"\$\(COURSE\) (\S+)", MAKEFILE):
        assert is_module(module), module


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_what_is_called_exists(path):
    text = path.read_text(encoding="utf-8")
    for target in re.findall(r"(?:^|`|run: |=1 )make ([a-z-]+)", text, re.M):
        assert target in TARGETS, target
    for module in re.findall(r"python3? -m ([\w.]+)", text):
        assert is_module(module) or module in {"venv", "pip"}, module
    for file in re.findall(r"\btools/[\w/]+\.py\b", text):
        assert (ROOT / file).is_file(), file


def test_ci_runs_the_readmes_test_command_with_browser_and_sandbox_compulsory():
    last = (ROOT / ".ci" / "run").read_text(encoding="utf-8").strip().splitlines()[-1]
    assert last == "AIGC_REQUIRE_BROWSER=1 AIGC_REQUIRE_SANDBOX=1 make test"
    assert "\nmake test " in (ROOT / "README.md").read_text(encoding="utf-8")
