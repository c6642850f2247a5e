"""What a process may use of a GPU's memory: its share of what is free, less what this run's products took."""

import pytest
import torch

from landscape.autodiff import memory


@pytest.fixture
def gpus(monkeypatch):
    """Two GPUs of which 100 bytes are free each; peaks in bytes, which `begin` resets."""
    peaks = [60, 60]
    for name, found in {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "device_count": lambda: 2,
        "mem_get_info": lambda device: (100, 1000),
        "memory_reserved": lambda device: 20,
        "max_memory_allocated": lambda device: peaks[device.index or 0],
        "reset_peak_memory_stats": lambda number: peaks.__setitem__(number, 10),
    }.items():
        monkeypatch.setattr(torch.cuda, name, found)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    return peaks


def test_only_the_peak_of_this_run_counts(gpus):
    device = torch.device("cuda")
    assert memory.room(device, None) == int(0.8 * (100 + 20 - 60))
    assert memory.room(device, 90) == 30
    memory.begin()
    assert gpus == [10, 10]
    assert memory.room(device, None) == int(0.8 * (100 + 20 - 10))
    assert memory.room(device, 90) == 80


@pytest.mark.parametrize(("ranks", "share"), [(1, 100), (2, 100), (3, 50), (4, 50), (5, 100 / 3)])
def test_processes_that_share_a_gpu_divide_what_is_free(gpus, monkeypatch, ranks, share):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
    memory.begin()
    assert memory.room(torch.device("cuda"), None) == int(0.8 * (share + 20 - 10))
    assert memory.room(torch.device("cuda"), 90) == 80  # a limit is that of a process


def test_files_that_the_system_would_give_back_leave_room_in_a_container(tmp_path, monkeypatch):
    for name, text in {
        "max": "4096000", "current": "4000000", "stat": "anon 1000\ninactive_file 3000000\nactive_file 500\n",
    }.items():  # fmt: skip
        (tmp_path / f"memory.{name}").write_text(f"{text}\n")
    # private: the folder in which a container's limits are
    monkeypatch.setattr(memory, "_GROUP", tmp_path)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert memory.room(torch.device("cpu"), None) == int(0.8 * (96000 + 3000000))
