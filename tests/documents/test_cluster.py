"""The scripts of docs/cluster.md: read by bash, and run by a stand-in of srun on one machine."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import landscape as ls
from landscape.networks import checkpoints, models

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/cluster.md").read_text(encoding="utf-8")
SCRIPTS = re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)
(PROGRAM,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
SRUN = f"""#!{sys.executable}
# What srun does of this: it starts as many processes as the step has tasks, and tells each its place.
import os, subprocess, sys
words = sys.argv[1:]
tasks = int(os.environ["SLURM_NTASKS"])
while words[0].startswith("-"):
    option = words.pop(0)
    tasks = int(option.partition("=")[2]) if option.startswith("--ntasks=") else tasks
own = {{"SLURM_STEP_ID": str(os.getpid()), "SLURM_STEP_NUM_TASKS": str(tasks), "SLURM_STEP_NODELIST": "localhost"}}
started = [
    subprocess.Popen(words, env=os.environ | own | {{"SLURM_PROCID": str(k), "SLURM_LOCALID": str(k)}})
    for k in range(tasks)
]
sys.exit(max(process.wait() for process in started))
"""
LANDSCAPE = f"""#!{sys.executable}
# In place of the command: a task says its rank, of how many, and what it was called with.
import os, sys
from landscape.autodiff import slurm
found = slurm.rendezvous(os.environ)
words = [found.get("RANK", "0"), "of", found.get("WORLD_SIZE", "1"), *sys.argv[1:]]
os.write(1, (" ".join(words) + chr(10)).encode())  # in one piece, beside what others say
"""


@pytest.mark.parametrize("number", range(len(SCRIPTS)))
def test_bash_reads_the_script(number):
    assert subprocess.run(["bash", "-n"], input=SCRIPTS[number], text=True, check=False).returncode == 0


def run(script, tmp_path, **job):
    for name, text in (("srun", SRUN), ("landscape", LANDSCAPE)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    found = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        ["bash", "-c", script], env=found | job, capture_output=True, text=True, check=True, timeout=200, cwd=tmp_path
    )
    return sorted(done.stdout.splitlines())


def test_the_tasks_of_a_step_know_each_other(tmp_path):
    said = run(SCRIPTS[0], tmp_path, SLURM_NTASKS="2", SLURM_PROCID="0", RUN="runs/ce")
    assert said == [f"{k} of 2 hessian --ckpt runs/ce/last.pt --per-class --density" for k in range(2)]


def test_a_task_of_an_array_takes_its_own_model(tmp_path):
    said = run(SCRIPTS[1], tmp_path, SLURM_NTASKS="1", SLURM_PROCID="0", SLURM_ARRAY_TASK_ID="2")
    assert said == ["0 of 1 hessian --ckpt runs/gsa/last.pt --per-class"]


def test_steps_side_by_side_are_alone_each_and_the_script_goes_on_by_itself(tmp_path):
    said = run(SCRIPTS[2], tmp_path, SLURM_NTASKS="3", SLURM_PROCID="0")
    runs = ("ce", "gsa", "sam")
    expected = [f"0 of 1 hessian --ckpt runs/{name}/last.pt --per-class" for name in runs]
    assert said == sorted([*expected, "0 of 1 compare runs/*/last.hessian.h5"])


@pytest.mark.slow
def test_the_tasks_of_a_program_in_python_divide_its_work(tmp_path):
    """Two tasks that did not know each other would both want the file, and one of them would be refused."""
    (tmp_path / "python").write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
    (tmp_path / "python").chmod(0o755)
    smaller = PROGRAM.replace('"class"', '"head-tail", samples_per_class=4', 1)
    options = 'steps=4, backend="reverse", sampling_errors=False'  # tracing and errors load much of torch
    smaller = smaller.replace("(objective, out", f"(objective, {options}, out", 1)
    (tmp_path / "mine.py").write_text(smaller)
    (tmp_path / "runs" / "ce").mkdir(parents=True)
    meta = {"model": "small-resnet", "n_classes": 10, "dataset": {"name": "digits-lt"}}
    checkpoints.write(tmp_path / "runs" / "ce" / "last.pt", models.build("small-resnet", 10).state_dict(), meta)
    own = {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    said = run(SCRIPTS[3], tmp_path, SLURM_NTASKS="2", SLURM_PROCID="0", **own)
    found = ls.load(tmp_path / "classes.h5", ls.Spectrum)
    assert found.parts == ("head", "tail")
    assert said == sorted(str(found).splitlines())  # of one task
    assert not (tmp_path / "classes.h5.partial").exists()
