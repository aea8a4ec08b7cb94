"""The files that say the same thing twice say the same thing."""

import re
import tomllib
from itertools import chain

import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tools import ROOT, bootstrap

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
REQUIREMENTS = {
    canonicalize_name(requirement.name): requirement
    for requirement in map(Requirement, chain(PROJECT["dependencies"], *EXTRAS.values()))
}


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


def test_the_constraints_are_exact_and_within_the_ranges():
    pins = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            name, version = line.split("==")
            pins[canonicalize_name(name)] = version
    assert pins["torch"] == "2.13.0"
    for name, requirement in REQUIREMENTS.items():
        assert requirement.specifier.contains(pins[name]), name


def test_the_set_up_asks_for_known_extras_and_the_same_python():
    assert set(bootstrap.EXTRAS.split(",")) <= set(EXTRAS)
    assert PROJECT["requires-python"] == ">={}.{}".format(*bootstrap.OLDEST)


def test_every_make_target_is_explained_and_names_a_module():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    phony = makefile.partition(".PHONY:")[2].partition("\n\n")[0].replace("\\", "").split()
    assert re.findall(r"^([a-z-]+):.*## ", makefile, re.M) == phony
    for module in re.findall(r"\$\(COURSE\) (\S+)", makefile):
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), module
