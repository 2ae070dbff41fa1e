"""The compiled kernels: optional, so that an install without a compiler still works and takes torch's way.

One C++ source, once for every instruction set; which of them runs is decided on the machine that imports it. Nothing of
torch is needed to build. The modules keep to the stable ABI of Python, so one wheel serves every later Python.
"""

import copy
import platform
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOM = "src/normscope/kernels/cpu"
HEADERS = ("vector", "problem", "batch_norm", "channels", "kernel", "rows", "tensors")
X86 = platform.machine().lower() in ("x86_64", "amd64")
FLAGS = [
    "-std=c++20",
    "-O3",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fvisibility=hidden",
    "-g0",
]
BUILDS = {"_baseline": []}
if X86:
    BUILDS["_avx2"] = ["-mavx2", "-mfma", "-mprfchw"]
    BUILDS["_avx512"] = ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma", "-mprfchw"]
# The modules use the stable ABI of the oldest Python in `requires-python`. A free-threaded Python has no stable ABI.
STABLE = not sysconfig.get_config_var("Py_GIL_DISABLED")
SINCE = (3, 11)


def extension(name: str, flags: list[str]) -> Extension:
    """Return one build of the source."""
    abi = [("Py_LIMITED_API", f"0x{SINCE[0]:02x}{SINCE[1]:02x}0000")] if STABLE else []
    return Extension(
        f"normscope.kernels.cpu.{name}",
        sources=[f"{ROOM}/{name}.cpp" for name in ("kernel", "rows", "module")],
        depends=[f"{ROOM}/{header}.h" for header in HEADERS],
        define_macros=[("NORMSCOPE_MODULE", name), *abi],
        extra_compile_args=[*FLAGS, *flags],
        extra_link_args=["-ldl", "-s"] if sys.platform == "linux" else [],
        language="c++",
        optional=True,
        py_limited_api=STABLE,
    )


class BuildApart(build_ext):
    """Compiles each extension in a folder of its own.

    They are made of the same sources, at the same time: in one folder, one would link what another has just compiled.
    """

    def build_extension(self, ext: Extension) -> None:
        """Compile and link one extension."""
        apart = copy.copy(self)
        apart.build_temp = str(Path(self.build_temp) / ext.name.rsplit(".", 1)[-1])
        super(BuildApart, apart).build_extension(ext)

    def copy_extensions_to_source(self) -> None:
        """Put the modules into the source tree, for an editable install."""
        super().copy_extensions_to_source()
        # Python prefers a module that is built for it alone, so an older one would hide the module just built.
        for name in BUILDS:
            if list(Path(ROOM).glob(f"{name}.abi3.*")):
                for older in Path(ROOM).glob(f"{name}.cpython-*"):
                    older.unlink()


class KernelsOrPrivate(bdist_wheel):
    """Marks a wheel that lacks a kernel as private: package indexes refuse it, `pip install` from source takes it."""

    def run(self) -> None:
        """Build the wheel."""
        self.run_command("build")
        built = Path(self.get_finalized_command("build").build_lib) / ROOM.removeprefix("src/")
        lacks = [name for name in BUILDS if not list(built.glob(f"{name}.*"))]
        if lacks:
            metadata = self.distribution.metadata
            metadata.classifiers = [*metadata.get_classifiers(), "Private :: Do Not Upload"]
            # The metadata were written before anything was compiled, and are written again.
            self.dist_info_dir = None
            self.get_finalized_command("egg_info").run()
            self.warn(f"the wheel lacks the compiled kernels {', '.join(lacks)}, so it is marked as private")
        super().run()


setup(
    ext_modules=[] if sys.platform == "win32" else [extension(*build) for build in BUILDS.items()],
    cmdclass={"build_ext": BuildApart, "bdist_wheel": KernelsOrPrivate},
    options={"bdist_wheel": {"py_limited_api": "cp{}{}".format(*SINCE)}} if STABLE else {},
)
