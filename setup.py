"""The compiled kernels: optional, so that an install without a compiler still works and takes torch's way.

One C++ source, once for every instruction set; which of them runs is decided on the machine that imports it. Nothing of
torch is needed to build.
"""

import copy
import platform
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOM = "src/normscope/kernels/cpu"
HEADERS = ("vector", "problem", "batch_norm", "channels", "kernel", "tensors")
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


def extension(name: str, flags: list[str]) -> Extension:
    """Return one build of the source."""
    return Extension(
        f"normscope.kernels.cpu.{name}",
        sources=[f"{ROOM}/kernel.cpp", f"{ROOM}/module.cpp"],
        depends=[f"{ROOM}/{header}.h" for header in HEADERS],
        define_macros=[("NORMSCOPE_MODULE", name)],
        extra_compile_args=[*FLAGS, *flags],
        extra_link_args=["-ldl", "-s"] if sys.platform == "linux" else [],
        language="c++",
        optional=True,
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


setup(
    ext_modules=[] if sys.platform == "win32" else [extension(*build) for build in BUILDS.items()],
    cmdclass={"build_ext": BuildApart},
)
