"""`landscape info`: what a result file or a checkpoint holds."""

import json

import pytest
import torch
from made import spectrum

from landscape.cli import info
from landscape.results.journal import Journal


def test_info_tells_what_a_result_holds(run, file):
    code, out, err = run("info", file)
    assert (code, err) == (0, [])
    assert "spectrum, version 4, 3 parts" in out
    assert "class 2" in out
    assert "part 3 x probe 3 x step 8" in out
    assert "all trainable" in out  # of the provenance


def test_info_json_holds_axes_and_units(run, file):
    found = json.loads(run("info", file, "--json")[1], parse_constant=pytest.fail)
    assert found["fields"]["alpha"]["axes"] == ["part", "probe", "step"]
    assert found["fields"]["alpha"]["shape"] == [3, 3, 8]
    assert found["fields"]["trace"]["unit"] == "loss"
    assert found["options"]["operator"] == "hessian"
    assert found["parts"][1] == {"name": "class 1", "n_samples": 2500, "n_used": 2500, "train_counts": 2500}
    assert found["provenance"]["loss"] == "ce"


def test_info_tells_what_a_checkpoint_holds(run, tmp_path):

    path = tmp_path / "model.th"
    state = {"module.fc.weight": torch.zeros(3, 4), "module.bn.running_mean": torch.zeros(5)}
    torch.save({"state_dict": state, "best_prec1": 92.78}, path)
    code, out, _ = run("info", path, "--json")
    found = json.loads(out)
    assert code == 0
    assert (found["weights_at"], found["prefix"]) == ("state_dict", "module.")
    assert (found["tensors"], found["numbers"], found["of_which_batch_norm_statistics"]) == (2, 17, 5)
    assert found["beside_the_weights"] == {"best_prec1": 92.78}
    assert (found["not_finite"], found["largest_number"]) == (0, 0)
    assert "92.78" in run("info", path)[1]


def test_info_tells_of_numbers_that_are_not_finite_and_of_huge_ones(run, tmp_path):
    weight = torch.tensor([torch.nan, torch.inf, -1e300, 1.0], dtype=torch.float64)
    torch.save({"weight": weight, "none": torch.zeros(0), "lost": torch.full((2,), -torch.inf)}, tmp_path / "model.pt")
    found = json.loads(run("info", tmp_path / "model.pt", "--json")[1])
    assert (found["not_finite"], found["largest_number"]) == (4, 1e300)


def test_info_explains_a_file_that_is_neither(run, tmp_path):
    (tmp_path / "notes.txt").write_text("not a result")
    (tmp_path / "broken.h5").write_text("not a result either")
    for name, words in (("notes.txt", "not a checkpoint"), ("broken.h5", "not an HDF5 file"), ("none.pt", "no file")):
        code, _, err = run("info", tmp_path / name)
        assert (code, len(err)) == (2, 1)
        assert words in err[0]


@pytest.mark.parametrize("command", ["info", "plot", "compare"])
def test_an_unfinished_result_is_called_so(run, tmp_path, command):
    with Journal.open(tmp_path / "out.h5", {}) as journal:
        journal.write("a", spectrum("a"))
    code, _, err = run(command, journal.folder)
    assert (code, len(err)) == (2, 1)
    assert f"{journal.folder} is an unfinished result" in err[0]


@pytest.mark.parametrize(
    ("names", "prefix"),
    [(["module.a.w", "module.b"], "module."), (["a.w", "a.b"], "a."), (["w"], ""), (["a.x.w", "b.x.w"], "")],
)
def test_the_prefix_is_what_all_names_begin_with(names, prefix):
    # private: names of parameters as no file here has them
    assert info._common_prefix(names) == prefix
