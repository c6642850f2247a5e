"""Commands killed at random moments and given again: the same numbers at the end as without, and nothing left over.

Each attempt is a child process that is forked, so that it need not import anything; SIGKILL comes at a random moment of
the time that the command takes. A command is killed up to KILLS times, then it may end.

The campaign: LANDSCAPE_KILLS=500 pytest -m campaign tests/campaigns/test_kills.py
LANDSCAPE_FIRST=1 takes other moments.
"""

import os
import time
from pathlib import Path

import numpy as np
import pytest
from campaigns import commands

CAMPAIGN = int(os.environ.get("LANDSCAPE_KILLS", "500"))
FIRST = int(os.environ.get("LANDSCAPE_FIRST", "0"))
KILLS = 5  # of one command, before it may end


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    return commands.made(tmp_path_factory.mktemp("kills"))


def kill_and_repeat(made: Path, tmp_path: Path, name: str, n_kills: int, seed: int = 0) -> int:
    """Kill a command at least `n_kills` times in all; how many rounds came to an end."""
    rng = np.random.default_rng([n_kills, seed, *name.encode()])
    whole = commands.place(tmp_path, "whole", made)
    before = time.monotonic()
    assert commands.ended(commands.started(whole, commands.COMMANDS[name]), 600) == 0, (whole / "said").read_text()
    seconds = time.monotonic() - before
    expected = commands.numbers(whole)
    assert expected
    killed = rounds = 0
    while killed < n_kills:
        place, of_this = commands.place(tmp_path, "killed", made), 0
        while True:
            again = of_this < min(KILLS, n_kills - killed)
            child = commands.started(place, commands.COMMANDS[name])
            code = commands.ended(child, rng.uniform(0, seconds) if again else 600)
            if code is None:
                of_this += 1
                continue
            said = (place / "said").read_text()
            whole_before = code == 2 and said.count("out.h5 exists") == 1  # killed when all was written
            assert code == 0 or whole_before, f"round {rounds} after {of_this} kills: {said}"
            break
        killed += of_this
        rounds += 1
        assert commands.numbers(place) == expected, f"other numbers in round {rounds}, after {of_this} kills"
        assert commands.left_over(place) == []
    print(f"{name}: {killed} kills in {rounds} rounds, each with the numbers of {seconds:.1f} s without")
    return rounds


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hessian"])
def test_a_killed_command_given_again_comes_to_the_same_numbers(made, tmp_path, name):
    assert kill_and_repeat(made, tmp_path, name, 3) >= 1


@pytest.mark.campaign
@pytest.mark.timeout(36_000)
@pytest.mark.parametrize("name", commands.KILLED)
def test_killed_commands_given_again_come_to_the_same_numbers(made, tmp_path, name):
    kill_and_repeat(made, tmp_path, name, CAMPAIGN // len(commands.KILLED), FIRST)
