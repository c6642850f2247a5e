"""Several processes train as one does."""

import signal
import time

import pytest
import torch
from fresh import Program
from ranks import variables
from runs import files, same, state
from toys import CPU, batched, recipe, vectors

import landscape as ls
from landscape.cli import main
from trainers import loop

# Ranks ------------------------------------------------------------------------------------------------------------

SHARED = {
    "ldam-drw": ["ldam-drw", "--model", "toys:smooth"],
    "sam": ["sam", "--model", "toys:smooth", "--monitor"],
    "gsa-gkp": ["gsa-gkp", "--model", "toys:smooth", "--groups", "2", "--group-after", "0.5"],
    "batch-norm": ["ce", "--model", "toys:batched", "--schedule", "constant", "--warmup-epochs", "0"],
}
OF_ALL = ["--dataset", "toys:vectors", "--epochs", "5", "--batch-size", "6", "--device", "cpu", "-q", "-o"]
RANK = """
import os, signal, sys, time
from datetime import timedelta
import torch
from landscape.autodiff import distributed
from landscape.cli import main
from trainers import loop, run

close, epoch = run.Run.close, loop.Trainer.run_epoch

def kept(self):
    torch.save(self.trainer.model.state_dict(), f"{self.out}-{os.environ['RANK']}.pt")
    close(self)

def lost(self, progress):
    if self.epoch == 2 and os.environ["RANK"] == "1":
        if killed:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(300)
    return epoch(self, progress)

run.Run.close = kept
for line in sys.argv[1:]:
    os.environ["MASTER_PORT"], *words = line.split()
    if words[-1].endswith(("killed", "hung")):  # the last line
        killed = words[-1].endswith("killed")
        distributed.TIMEOUT = distributed.TIMEOUT if killed else timedelta(seconds=6)
        loop.Trainer.run_epoch = lost
        sys.exit(main(words))
    if main(words):
        sys.exit(f"failed: {line}")
"""


@pytest.fixture(scope="module")
def two_ranks(made_once):
    """The folder in which two processes have trained all of `SHARED`, and left the model of each rank."""

    def train(folder):
        lines = [line(*words, *OF_ALL, folder / name) for name, words in SHARED.items()]
        lines.append(lost("killed", folder))
        first, second = (Program(RANK, *lines, env=own) for own in variables())
        code, _, errors = first.ended()
        assert code == 2, errors
        assert second.ended()[0] == -signal.SIGKILL, second.errors
        (folder / "said").write_text(errors)

    return made_once("ranks", train)


def line(*words):
    """A command of training, after a port of its own."""
    return " ".join(map(str, [variables()[0]["MASTER_PORT"], "train", *words]))


def lost(how, folder):
    return line(*SHARED["ldam-drw"], *OF_ALL, folder / how)


@pytest.mark.slow  # two processes that import torch
@pytest.mark.parametrize("name", ["ldam-drw", "sam", "gsa-gkp"])
def test_two_ranks_do_what_one_does(two_ranks, tmp_path, name):
    """Without batch norm and dropout a batch is the sum of its halves, whoever computes them."""
    assert main(["train", *SHARED[name], *OF_ALL, str(tmp_path)]) == 0
    one, two = state(tmp_path, "last.pt"), state(two_ranks / name, "last.pt")
    for tensor in one:
        torch.testing.assert_close(one[tensor], two[tensor], rtol=1e-4, atol=1e-5)
    assert files(tmp_path) == files(two_ranks / name)


@pytest.mark.slow
@pytest.mark.parametrize("name", SHARED)
def test_both_ranks_end_with_the_checkpoint(two_ranks, name):
    for rank in range(2):
        assert same(torch.load(two_ranks / f"{name}-{rank}.pt"), state(two_ranks / name, "last.pt"))


def check_what_is_left(errors, folder):
    """One line says that another process is lost, and two epochs are kept."""
    said = [text for text in errors.splitlines() if "landscape: error" in text]
    assert len(said) == 1, errors
    assert said[0].startswith("landscape: error: another process of this run has ended, or does not answer")
    assert ls.load(folder / "history.h5").epoch.tolist() == [1, 2]


@pytest.mark.slow
def test_a_process_that_is_killed_in_training_ends_the_other_one_at_once_in_one_line(two_ranks):
    check_what_is_left((two_ranks / "said").read_text(), two_ranks / "killed")


@pytest.mark.slow
def test_a_process_that_hangs_in_training_ends_the_other_one_after_the_timeout(tmp_path):
    words = lost("hung", tmp_path)
    first, second = (Program(RANK, words, env=own) for own in variables())
    begun = time.monotonic()
    code, _, errors = first.ended(60)
    second.send(signal.SIGKILL)
    assert code == 2
    assert time.monotonic() - begun > 6
    check_what_is_left(errors, tmp_path / "hung")


@pytest.mark.slow
def test_batch_norm_sees_its_ranks_slice_and_keeps_the_statistics_of_the_first(two_ranks):
    """Two copies in one process: shared weights, a slice of each batch and running statistics for each copy."""
    chosen = recipe(model="toys:batched", epochs=5, batch_size=6)
    inputs, labels = vectors("train")
    first, second = batched().train(), batched().train()
    weights = dict(first.named_parameters())
    options = {name: getattr(chosen, name) for name in ("lr", "momentum", "weight_decay")}
    optimizer = torch.optim.SGD(weights.values(), **options)
    apart = 0.0
    for epoch in range(5):
        with loop.seeded(CPU, chosen.seed, loop.SHUFFLE, epoch):
            order = torch.randperm(15)
        for batch in order.tensor_split(3):
            optimizer.zero_grad()
            for copy, mine in zip((first, second), batch.tensor_split(2), strict=True):
                logits = torch.func.functional_call(copy, weights, inputs[mine])
                (torch.nn.functional.cross_entropy(logits, labels[mine], reduction="sum") / len(batch)).backward()
            optimizer.step()
        theirs, ours = dict(second.named_buffers()), dict(first.named_buffers())
        apart = max(apart, max((ours[n] - b).abs().max().item() for n, b in theirs.items()))
        for name, buffer in theirs.items():
            buffer.copy_(ours[name])
    assert apart > 0.1  # the second rank's statistics were others
    found = state(two_ranks / "batch-norm", "last.pt")
    for name, expected in first.state_dict().items():
        torch.testing.assert_close(found[name], expected, rtol=1e-4, atol=1e-5)


IN_PYTHON = """
import os, sys
from landscape.autodiff import costs, distributed
from landscape.cli import main
from landscape.errors import InputError
from toys import batched, blobs
from trainers import recipe, train

distributed.start()
rank = distributed.rank()
both = blobs(), blobs(seed=1, split="test")
print(*train(batched(), both, recipe("ce", epochs=2, batch_size=6), device="cpu").history.epoch)
other = batched()
other[0].bias.data += rank
others = blobs(seed=rank), both[1]
for model, data, lr in ((other, both, 0.1), (batched(), others, 0.1), (batched(), both, 0.1 + rank)):
    try:
        train(model, data, recipe("ce", epochs=2, batch_size=6, lr=lr), device="cpu")
    except InputError as error:
        print(error)
distributed.stop()
os.environ["MASTER_PORT"] = sys.argv[1]
costs._REPEATS = 1 + 3 * rank
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.slow
def test_ranks_in_python_have_one_history_and_compare_their_inputs_and_the_first_times_steps(tmp_path):
    """A rank that is faster takes more steps in the time of a dry run, and each of them adds up over the ranks."""
    words = ["train", *SHARED["sam"], *OF_ALL[:-2], "--dry-run", "-o", tmp_path / "run"]
    port = variables()[0]["MASTER_PORT"]
    first, second = (Program(IN_PYTHON, port, *words, env=own) for own in variables())
    for rank in (first, second):
        code, output, errors = rank.ended()
        assert code == 0, errors
        epochs, *refusals = output.splitlines()[:4]
        assert epochs == "1 2"
        for line, name in zip(refusals, ("the network", "the data", "lr"), strict=True):
            assert name in line
    assert "nothing is written" in first.output
    assert len(second.output.splitlines()) == 4
    assert not (tmp_path / "run").exists()
