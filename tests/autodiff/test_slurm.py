"""What srun tells a task, as torch.distributed reads it; and two tasks that find each other by it."""

import os
import socket

import pytest
import ranks

from landscape.autodiff import distributed, slurm

STEP = {
    "SLURM_JOB_ID": "4711",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_NTASKS": "8",
    "SLURM_STEP_NUM_TASKS": "6",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
    "SLURM_JOB_NODELIST": "gpu[03-08]",
    "SLURM_STEP_TASKS_PER_NODE": "4,2",
}


def test_a_task_of_a_step_knows_its_rank_and_where_the_first_is():
    assert slurm.rendezvous(STEP) == {
        "RANK": "5",
        "WORLD_SIZE": "6",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "4",  # of the fullest machine: all ranks choose the way that tensors travel by it
        "MASTER_ADDR": "gpu07",
        "MASTER_PORT": str(15_000 + 4711 * 31 % 15_000),
    }


def test_what_the_user_set_stays_and_two_steps_have_two_ports():
    set_by_user = slurm.rendezvous(STEP | {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "12345"})
    assert (set_by_user["MASTER_ADDR"], set_by_user["MASTER_PORT"]) == ("10.0.0.1", "12345")
    assert slurm.rendezvous(STEP | {"SLURM_STEP_ID": "1"})["MASTER_PORT"] != slurm.rendezvous(STEP)["MASTER_PORT"]


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {name: value for name, value in STEP.items() if name != "SLURM_STEP_ID"},  # a batch script, outside srun
        STEP | {"SLURM_STEP_NUM_TASKS": "1"},
        STEP | {"RANK": "0", "WORLD_SIZE": "2"},  # torchrun within srun
    ],
)
def test_a_process_that_is_no_task_among_several_is_alone(environment):
    assert slurm.rendezvous(environment) == {}


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node1", "node1"),
        ("a1,a2", "a1"),
        ("gpu[03-05,09],login1", "gpu03"),
        ("n[7]", "n7"),
        ("rack[2-3]-n", "rack2-n"),
        ("a-b[001,003]", "a-b001"),
    ],
)
def test_the_first_machine_of_a_list_is_named(nodes, first):
    assert slurm.first_machine(nodes) == first


def meet(port, folder):
    """Be a task of srun: take the place of torchrun's variables by Slurm's, and add up with the other."""
    rank, world = os.environ["RANK"], os.environ["WORLD_SIZE"]
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        os.environ.pop(name, None)
    own = {"SLURM_PROCID": rank, "SLURM_LOCALID": rank, "SLURM_STEP_NUM_TASKS": world, "SLURM_STEP_ID": "0"}
    os.environ.update(own | {"SLURM_STEP_NODELIST": "localhost", "SLURM_JOB_ID": "7", "MASTER_PORT": port})
    distributed.start()
    with distributed.together():
        total = distributed.team().total_of(1.0 + distributed.rank())
    (folder / f"said-{rank}").write_text(f"{distributed.rank()} of {distributed.world()}: {total}")
    distributed.stop()


def test_two_tasks_find_each_other_without_torchrun(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for process in ranks.started(meet, 2, str(port), tmp_path):
        process.join(120)
    assert [(tmp_path / f"said-{rank}").read_text() for rank in range(2)] == ["0 of 2: 3.0", "1 of 2: 3.0"]
