"""A stand-in for SLURM: `sbatch`, `srun`, `sacct` and `scancel` as commands that run jobs on this machine."""

import os
import stat
import sys
import textwrap

SBATCH = r"""
import json, os, pathlib, re, subprocess, sys

text = pathlib.Path(sys.argv[1]).read_text()
state = pathlib.Path(__file__).parent / "state"
number = 100 + len(list(state.glob("*.sbatch")))
(state / f"{number}.sbatch").write_text(text)
if "refused" in text:
    sys.exit("sbatch: error: invalid partition specified: refused")
array = re.search(r"--array=0-(\d+)", text)
for index in range(int(array[1]) + 1) if array else [None]:
    job = str(number) if index is None else f"{number}_{index}"
    names = {"SLURM_JOB_ID": job.replace("_", "0"), "SLURM_NTASKS": "1", "SLURM_JOB_NUM_NODES": "1"}
    names |= {"SLURM_NODEID": "0", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_JOB_NODELIST": "node1"}
    if index is not None:
        names |= {"SLURM_ARRAY_JOB_ID": str(number), "SLURM_ARRAY_TASK_ID": str(index)}
    else:
        names |= {"SLURM_JOB_ID": job}
    script = f"bash {sys.argv[1]}; echo $? > {state}/{job}.ended"
    subprocess.Popen(["sh", "-c", script], env=os.environ | names, stdin=subprocess.DEVNULL,
                     stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
print(f"Submitted batch job {number}")
"""
SRUN = r"""
import os, sys

words = sys.argv[1:]
while words[0].startswith("--"):
    words = words[1:] if words[0] == "--unbuffered" else words[2:]
os.execvp(words[0], words)
"""
SACCT = r"""
import pathlib

print("JobID|State|NodeList")
for path in (pathlib.Path(__file__).parent / "state").glob("*.ended"):
    print(f"{path.stem}|{'COMPLETED' if path.read_text().strip() == '0' else 'FAILED'}|node1")
"""
SCANCEL = r"""
import pathlib, sys

with open(pathlib.Path(__file__).parent / "state" / "cancelled", "a") as file:
    print(*sys.argv[1:], file=file)
"""


def install(folder, monkeypatch):
    """Put the commands into a folder and the folder on the path; return the folder of the texts that were submitted."""
    folder.mkdir()
    (folder / "state").mkdir()
    for name, text in {"sbatch": SBATCH, "srun": SRUN, "sacct": SACCT, "scancel": SCANCEL}.items():
        (folder / f"{name}.py").write_text(textwrap.dedent(text))
        (folder / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" "{folder / name}.py" "$@"\n')
        (folder / name).chmod((folder / name).stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder / "state"
