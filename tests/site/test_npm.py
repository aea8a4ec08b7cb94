"""Packages from npm: whole or not at all, and only what the book needs of them."""

import tarfile

import pytest

from tools.book import npm

MATHJAX = npm.MATHJAX
FILES = ("startup.js", "output/chtml/fonts/tex.css", "input/tex/extensions/ams.js")


@pytest.fixture
def packer(tmp_path, monkeypatch):
    """A program that packs a MathJax of its own; what it was asked is in `asked`."""
    package = tmp_path / "package/es5"
    for file in FILES:
        (package / file).parent.mkdir(parents=True, exist_ok=True)
        (package / file).write_text(file)
    (package / "unneeded.js").write_text("")
    script = tmp_path / "bin/npm"
    script.parent.mkdir()
    script.write_text(
        f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\ntar czf mathjax.tgz -C {tmp_path} package\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(script.parent), prepend=":")
    return script


def test_a_package_is_fetched_once(packer, tmp_path):
    home = npm.fetch(MATHJAX, tmp_path)
    assert npm.fetch(MATHJAX, tmp_path) == home == MATHJAX.home(tmp_path)
    files = {str(file.relative_to(home)) for file in home.rglob("*") if file.is_file()}
    assert files == {f"mathjax/{file}" for file in FILES}
    assert (tmp_path / "asked").read_text().count("pack mathjax@3.2.2") == 1
    assert list((tmp_path / "build").iterdir()) == [home]


def test_half_a_package_is_never_kept(packer, tmp_path, monkeypatch):
    extract = tarfile.TarFile.extract

    def extract_one(archive, member, *args, **options):
        extract(archive, member, *args, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(tarfile.TarFile, "extract", extract_one)
    with pytest.raises(KeyboardInterrupt):
        npm.fetch(MATHJAX, tmp_path)
    assert list((tmp_path / "build").iterdir()) == []


def test_without_npm_there_is_no_folder(packer, tmp_path, monkeypatch):
    packer.write_text("#!/bin/sh\nexit 1\n")
    assert npm.fetch(MATHJAX, tmp_path) is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert npm.fetch(MATHJAX, tmp_path) is None
    assert list((tmp_path / "build").iterdir()) == []


def test_what_is_kept_changes_where_it_is_kept(tmp_path):
    less = MATHJAX._replace(keep=MATHJAX.keep[1:])
    assert less.home(tmp_path) != MATHJAX.home(tmp_path)
    assert MATHJAX.home(tmp_path).name.startswith("mathjax-3.2.2-")
