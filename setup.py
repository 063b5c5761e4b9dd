"""Everything is in pyproject.toml, but for one thing that it cannot say: where to build.

By default setuptools builds in ./build and never empties it, so a wheel would still hold modules that the sources have
lost, and two builds at a time would mix.
"""

from tempfile import TemporaryDirectory

from setuptools import setup
from setuptools.command.build import build


class BuildInFreshFolder(build):
    """Builds in a temporary folder that vanishes with the process."""

    def initialize_options(self) -> None:
        super().initialize_options()
        self.fresh_folder = TemporaryDirectory(prefix="planish-build-")
        self.build_base = self.fresh_folder.name


setup(cmdclass={"build": BuildInFreshFolder})
