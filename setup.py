"""What setup.cfg cannot say: a build begins with an empty folder.

setuptools copies the package into ``build/`` and packs what it finds there, files of a former
version too: a module that was moved would then be in the wheel twice.
"""

from __future__ import annotations

import shutil

from setuptools import setup
from setuptools.command.build_py import build_py


class FreshBuild(build_py):
    def run(self) -> None:
        shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()


setup(cmdclass={"build_py": FreshBuild})
