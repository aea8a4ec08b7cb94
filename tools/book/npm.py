"""What comes from npm, pinned: fetched once into `build/`, without running anything of it."""

import os
import shutil
import subprocess
import tarfile
import tempfile
import zlib
from pathlib import Path
from typing import NamedTuple


class Package(NamedTuple):
    """A package, and the part of it that is kept."""

    name: str
    version: str
    megabytes: int  # to download
    folder: str  # inside the archive
    keep: tuple[str, ...]  # beginnings of paths in that folder

    def home(self, root: Path) -> Path:
        """Where it is kept, or would be, in a folder that has its name."""
        kept = zlib.crc32(" ".join(self.keep).encode())  # to keep more is to fetch anew
        return root / "build" / f"{self.name}-{self.version}-{kept:08x}"


MATHJAX = Package(
    "mathjax",
    "3.2.2",
    6,
    "package/es5/",
    (
        *("startup.js", "core.js", "output/chtml.js", "output/chtml/fonts/"),
        *("input/tex.js", "input/tex/extensions/", "a11y/assistive-mml.js"),
    ),
)
AXE = Package("axe-core", "4.14.1", 1, "package/", ("axe.min.js",))
MYST = Package("mystmd", "1.8.3", 3, "package/", ("dist/",))


def fetch(package: Package, root: Path) -> Path | None:
    """Keep the part of a package that is needed; its home, or None where npm cannot fetch it."""
    home = package.home(root)
    if home.is_dir():
        return home
    npm = shutil.which("npm")
    if npm is None:
        return None
    what = f"{package.name}@{package.version}"
    print(f"Fetching {what} with npm, once ({package.megabytes} MB)", flush=True)
    home.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home.parent) as scratch:
        pack = [npm, "pack", what, "--fetch-retries=0", "--fetch-timeout=60000"]
        if subprocess.run(pack, cwd=scratch, capture_output=True, check=False).returncode:
            return None
        fresh = Path(scratch, "fresh")
        with tarfile.open(next(Path(scratch).glob("*.tgz"))) as archive:
            for member in archive.getmembers():
                member.name = member.name.removeprefix(package.folder)
                if member.name.startswith(package.keep):
                    archive.extract(member, fresh / package.name, filter="data")
        try:
            os.replace(fresh, home)  # the whole folder or none
        except OSError:
            if not home.is_dir():  # nobody else put it there meanwhile
                raise
    return home
