"""A script for an installed wheel: ends in an error unless every compiled kernel of this machine is in it and loads."""

import platform
from importlib import metadata, util

from normscope.kernels import cpu

reason = cpu.why_not()
assert not reason, f"the wheel has no kernel that runs: {reason}"
wanted = ["_baseline"]
if platform.machine().lower() in ("x86_64", "amd64"):
    wanted += ["_avx2", "_avx512"]
lacks = [name for name in wanted if util.find_spec(f"normscope.kernels.cpu.{name}") is None]
assert not lacks, f"the wheel lacks the kernels {', '.join(lacks)}"
private = [name for name in metadata.metadata("normscope").get_all("Classifier") if name.startswith("Private ::")]
assert not private, "the wheel is marked as private, so no index takes it"
print("normscope", metadata.version("normscope"), "computes with", cpu.about()["isa"])
