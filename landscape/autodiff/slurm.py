"""Processes started by Slurm's `srun`: their environment translated to the variables of torch.distributed.

`srun` gives each task of a job step SLURM_PROCID (its rank), SLURM_STEP_NUM_TASKS, SLURM_LOCALID (its rank on its own
machine) and SLURM_STEP_NODELIST, the machines in short form. In a batch script outside `srun` the task numbers are set
too, although there is only one process; there SLURM_STEP_ID is missing.

The port is computed from the numbers of job and step, so that two jobs on one machine use different ports.

Source: the manual pages of srun and sbatch; the short form of lists of machines is that of `scontrol show hostnames`.
"""

import re
from collections.abc import Mapping

_FIRST_PORT, _PORTS = 15_000, 15_000


def rendezvous(environment: Mapping[str, str]) -> dict[str, str]:
    """Translate the environment of a task.

    Args:
        environment: environment variables of this process.

    Returns:
        RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT, as torchrun sets them; variables
        that are already set keep their values. Empty if torchrun started the process, or if this is not a step of
        several tasks.
    """
    world = environment.get("SLURM_STEP_NUM_TASKS", environment.get("SLURM_NTASKS", "1"))
    if "RANK" in environment or not {"SLURM_STEP_ID", "SLURM_PROCID"} <= environment.keys() or int(world) < 2:
        return {}
    nodes = environment.get("SLURM_STEP_NODELIST", environment.get("SLURM_JOB_NODELIST", "localhost"))
    number = int(environment.get("SLURM_JOB_ID", "0")) * 31 + int(environment["SLURM_STEP_ID"])
    found = {
        "RANK": environment["SLURM_PROCID"],
        "WORLD_SIZE": world,
        "LOCAL_RANK": environment.get("SLURM_LOCALID", "0"),
        "LOCAL_WORLD_SIZE": str(_most_on_a_machine(environment, int(world))),
        "MASTER_ADDR": first_machine(nodes),
        "MASTER_PORT": str(_FIRST_PORT + number % _PORTS),
    }
    return {name: environment.get(name, value) for name, value in found.items()}


def first_machine(nodes: str) -> str:
    """Return the first name in a list of machines.

    Args:
        nodes: in Slurm's short form, such as "gpu[03-05,09],login1".

    Returns:
        The name, such as "gpu03".
    """
    found = re.match(r"([^,\[]*)(?:\[([^\]]*)\])?([^,\[]*)", nodes)
    if found is None:
        return nodes
    head, numbers, tail = found[1], found[2] or "", found[3]
    return head + re.split(r"[-,]", numbers)[0] + tail


def _most_on_a_machine(environment: Mapping[str, str], world: int) -> int:
    """Return the largest number of tasks on one machine, from a text such as "4(x2),1" that all ranks have."""
    text = environment.get("SLURM_STEP_TASKS_PER_NODE", environment.get("SLURM_TASKS_PER_NODE", str(world)))
    counts = [int(number) for number in re.findall(r"(\d+)(?:\(x\d+\))?(?:,|$)", text)]
    return max(counts, default=world)
