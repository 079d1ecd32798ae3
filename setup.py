"""What setup.cfg cannot say: a build begins with an empty folder, and has the same modes anywhere.

setuptools copies the package into ``build/`` and packs what it finds there, files of a former
version too: a module that was moved would then be in the wheel twice. And it packs the modes that
the files have, which depend on the umask of whoever has checked them out.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py


class FreshBuild(build_py):
    def run(self) -> None:
        shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()
        _same_modes(self.build_lib)


class SameModes(bdist_wheel):
    def egg2dist(self, egginfo_path: str, distinfo_path: str) -> None:
        super().egg2dist(egginfo_path, distinfo_path)
        _same_modes(distinfo_path)


def _same_modes(folder: str) -> None:
    for path in Path(folder).rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)


setup(cmdclass={"build_py": FreshBuild, "bdist_wheel": SameModes})
