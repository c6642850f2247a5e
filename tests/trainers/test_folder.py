"""The folder of a run: what may be put into it, what is refused, what a killed process has left there."""

import fcntl
from pathlib import Path

import pytest
import torch
from refusals import refused
from toys import begin, finish

from landscape.errors import NumericalError, StoreError
from landscape.networks import checkpoints
from trainers import folder, memory

GROUPED = {"sharpness": "gsa", "gkp": True, "groups": 2, "epochs": 6, "group_after": 0.4, "regroup_every": 0.3}
GROUPED |= {"warmup_epochs": 0}  # the bank fills from the first epoch on


def files(out):
    return sorted(str(p.relative_to(out)) for p in out.rglob("*") if p.is_file() and p.name != ".lock")


def test_other_options_than_the_folders_are_refused_by_name(tmp_path):
    finish(tmp_path)
    with refused(StoreError, 0.2, lr=0.1):
        begin(tmp_path, lr=0.2)


def test_another_method_than_the_folders_is_refused_by_its_name(tmp_path):
    finish(tmp_path, sharpness="sam")
    with pytest.raises(StoreError, match="holds a run of sam, now it is ce:"):
        begin(tmp_path)


def test_a_finished_run_that_is_begun_again_has_nothing_to_do(tmp_path):
    history = finish(tmp_path, snapshot_every=1)
    before = {name: ((tmp_path / name).read_bytes(), (tmp_path / name).stat().st_mtime_ns) for name in files(tmp_path)}
    again = finish(tmp_path, snapshot_every=1)
    assert again.epoch.tolist() == history.epoch.tolist()
    for name, (content, written) in before.items():
        assert ((tmp_path / name).read_bytes(), (tmp_path / name).stat().st_mtime_ns) == (content, written)


def test_overwrite_replaces_all_that_the_earlier_run_left_and_nothing_else(tmp_path):
    finish(tmp_path, snapshot_every=1, validation=0.3, **GROUPED)
    (tmp_path / "notes.txt").write_text("mine")
    finish(tmp_path, overwrite=True)
    assert files(tmp_path) == ["config.toml", "history.csv", "history.h5", "last.pt", "notes.txt", "state.pt"]


def test_a_checkpoint_of_somebody_else_is_not_replaced_unasked(tmp_path):
    (tmp_path / "last.pt").write_bytes(b"precious")
    with refused(StoreError, "last.pt", overwrite=True):
        begin(tmp_path)
    assert (tmp_path / "last.pt").read_bytes() == b"precious"


def test_a_run_that_was_killed_in_its_first_epoch_begins_anew(tmp_path, monkeypatch):
    """All is written but the file that makes the epoch count."""
    write = checkpoints.write

    def killed(path, *rest):
        if Path(path).name == "state.pt":
            raise SystemExit
        write(path, *rest)

    monkeypatch.setattr(checkpoints, "write", killed)
    with pytest.raises(SystemExit):
        finish(tmp_path)
    monkeypatch.undo()
    assert (tmp_path / "last.pt").exists()
    with pytest.raises(StoreError, match="now it is"):
        begin(tmp_path, lr=0.2)
    assert finish(tmp_path).epoch.tolist() == [1, 2]


def test_a_folder_in_use_is_refused(tmp_path):
    this = begin(tmp_path)
    with pytest.raises(StoreError, match="is in use by another process"):
        begin(tmp_path)
    this.close()
    begin(tmp_path).close()


def test_a_folder_whose_clearing_was_cut_holds_no_run_that_could_go_on(tmp_path, monkeypatch):
    finish(tmp_path, snapshot_every=1)
    unlink = Path.unlink

    def killed(self, **options):
        if self.name == "history.csv":
            raise SystemExit
        unlink(self, **options)

    monkeypatch.setattr(Path, "unlink", killed)
    with pytest.raises(SystemExit):
        finish(tmp_path, lr=0.2, overwrite=True)
    monkeypatch.undo()
    again = begin(tmp_path, snapshot_every=1)
    again.close()
    assert not again.resumed


def test_a_run_whose_state_somebody_removed_is_not_repeated_unasked(tmp_path):
    finish(tmp_path)
    (tmp_path / "state.pt").unlink()
    with refused(StoreError, 2, "state.pt"):
        begin(tmp_path)


def test_somebody_elses_state_is_refused(tmp_path):
    torch.save({"optimizer": torch.zeros(1)}, tmp_path / "state.pt")
    with refused(StoreError, "state.pt", overwrite=True):
        begin(tmp_path)


def edit_state(out, change):
    """Change what the state of a run holds."""
    found = checkpoints.read(out / "state.pt")
    state, meta = dict(found.state), dict(found.meta)
    change(state, meta)
    checkpoints.write(out / "state.pt", state, meta)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state, meta: meta.pop("bank"), ("state.pt", "bank")),
        (lambda state, meta: state.pop("history.quality"), ("quality",)),
        (lambda state, meta: state.pop("model.0.bias"), ("state.pt", "Sequential")),
        (lambda state, meta: meta["recipe"].update(fancy=3), ("fancy",)),
    ],
)
def test_a_state_of_another_version_is_refused_with_what_it_lacks_and_a_remedy(tmp_path, change, message, cut):
    cut(tmp_path)
    edit_state(tmp_path, change)
    with refused(StoreError, *message, overwrite=True) as error:
        begin(tmp_path)
    assert "\n" not in str(error.value)
    finish(tmp_path, overwrite=True)  # the folder is free


def test_options_that_an_older_version_did_not_know_were_as_they_are_by_default(tmp_path, cut):
    cut(tmp_path)
    edit_state(tmp_path, lambda state, meta: meta["recipe"].pop("drw_start"))
    with refused(StoreError, 0.5, drw_start=0.8):
        begin(tmp_path, drw_start=0.5)
    assert finish(tmp_path).epoch.tolist() == [1, 2]


@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(path.read_bytes()[:500]), Path.unlink])
@pytest.mark.parametrize("name", ["state.pt", "groups-0002.pt"])
def test_what_is_damaged_or_missing_names_the_remedy(tmp_path, name, damage, cut):
    cut(tmp_path, after=3, **GROUPED)
    damage(tmp_path / name)
    with refused(StoreError, name.split(".")[0], overwrite=True):
        begin(tmp_path, **GROUPED)


@pytest.fixture
def cut(epochs):
    """Train a run in a folder until some epochs are over."""

    def cut(out, after=1, **options):
        def stop(trainer):
            if trainer.epoch == after:
                raise KeyboardInterrupt

        with epochs(before=stop), pytest.raises(KeyboardInterrupt):
            finish(out, **options)

    return cut


def test_a_run_goes_on_where_its_data_have_been_moved_to(tmp_path, cut):
    cut(tmp_path, data_root="here")
    assert finish(tmp_path, data_root="there").epoch.tolist() == [1, 2]
    assert checkpoints.read(tmp_path / "state.pt").meta["recipe"]["data_root"] == "there"


def test_a_run_does_not_go_on_with_other_data_under_the_same_name(tmp_path, monkeypatch, cut):
    (tmp_path / "shifted.py").write_text(
        "from pathlib import Path\n"
        "import toys\n"
        "def vectors(split):\n"
        "    inputs, labels = toys.vectors(split)\n"
        "    return inputs + float(Path(__file__).with_name('shift').read_text()), labels\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "shift").write_text("0")
    cut(tmp_path / "run", dataset="shifted:vectors")
    begin(tmp_path / "run", dataset="shifted:vectors").close()
    (tmp_path / "shift").write_text("1")
    with refused(StoreError, overwrite=True):
        begin(tmp_path / "run", dataset="shifted:vectors")


def test_what_a_killed_process_left_unfinished_goes_unless_it_is_still_written(tmp_path):
    (tmp_path / "bank").mkdir()
    for name in ("bank/.landscape-1.tmp", ".landscape-2.tmp", "mine.tmp"):
        (tmp_path / name).write_bytes(b"begun")
    with open(tmp_path / ".landscape-2.tmp", "rb") as written:
        fcntl.flock(written, fcntl.LOCK_EX)
        begin(tmp_path).close()
        assert files(tmp_path) == [".landscape-2.tmp", "mine.tmp"]
    begin(tmp_path).close()
    assert files(tmp_path) == ["mine.tmp"]


def test_files_of_others_that_look_like_groups_stay(tmp_path):
    (tmp_path / "groups-mine.pt").write_text("mine")
    finish(tmp_path, **GROUPED)
    assert [f for f in files(tmp_path) if f.startswith("groups")] == ["groups-0004.pt", "groups-mine.pt"]


def test_a_folder_that_cannot_be_cleared_is_said_in_a_line(tmp_path):
    finish(tmp_path)
    (tmp_path / "history.csv").unlink()
    (tmp_path / "history.csv").mkdir()
    with refused(StoreError, "Is a directory"):
        folder.clear(tmp_path)


# Files of others ------------------------------------------------------------------------------------------------------

INSIDE = {"snapshots": "thesis.pth", "bank": "accounts.txt", "tensorboard": "mine.log"}


def put(out, name):
    """Something under a name of the run's own, in a folder where that is one."""
    path = out / name / INSIDE[name] if name in INSIDE else out / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("precious")
    return path


@pytest.mark.parametrize("name", [*folder.OWN, "groups-0002.pt"])
def test_no_file_that_a_run_would_replace_is_replaced_unasked(tmp_path, name):
    path = put(tmp_path, name)
    with refused(StoreError, name, overwrite=True):
        finish(tmp_path, snapshot_every=1, **GROUPED)
    assert path.read_text() == "precious"


def test_overwrite_replaces_by_name_and_never_a_folder_with_files_of_others(tmp_path):
    finish(tmp_path, snapshot_every=1, **GROUPED)
    kept = [put(tmp_path, name) for name in INSIDE]
    events = tmp_path / "tensorboard" / "events.out.tfevents.1.host.1.0"
    events.touch()
    finish(tmp_path, overwrite=True)
    assert [path.read_text() for path in kept] == ["precious"] * 3
    assert files(tmp_path / "snapshots") == ["thesis.pth"]
    assert files(tmp_path / "bank") == ["accounts.txt"]
    assert not events.exists()


def test_a_recipe_written_by_hand_does_not_make_a_folder_a_runs(tmp_path):
    (tmp_path / "config.toml").write_text('method = "sam"\n')
    with refused(StoreError, "config.toml", overwrite=True):
        begin(tmp_path)


@pytest.mark.parametrize("name", ["last.pt", "best.pt"])
def test_a_checkpoint_that_the_run_of_the_recipe_did_not_leave_stays(tmp_path, name):
    finish(tmp_path)
    (tmp_path / "state.pt").unlink()
    (tmp_path / "last.pt").unlink()
    torch.save({"w": torch.zeros(2)}, tmp_path / name)
    with refused(StoreError, name, overwrite=True):
        begin(tmp_path)


def test_a_run_that_was_killed_while_it_stored_its_first_models_begins_anew(tmp_path, monkeypatch):
    def killed(*arguments):
        raise SystemExit

    monkeypatch.setattr(memory.Bank, "update", killed)
    with pytest.raises(SystemExit):
        finish(tmp_path, **GROUPED)
    monkeypatch.undo()
    put(tmp_path, "bank").rename(tmp_path / "bank" / "epoch-0001.pt")
    assert len(finish(tmp_path, **GROUPED).epoch) == 6


def test_a_folder_that_somebody_removes_meanwhile_is_no_matter_at_the_end(tmp_path):
    this = begin(tmp_path / "run")
    (tmp_path / "run" / ".lock").unlink()
    (tmp_path / "run").rmdir()
    this.close()


def test_a_folder_that_was_made_for_a_run_without_an_epoch_goes_again(tmp_path):
    with pytest.raises(NumericalError):
        finish(tmp_path / "runs" / "bad", lr=1e30, warmup_epochs=0)
    assert not list(tmp_path.iterdir())
    (tmp_path / "mine").mkdir()
    with pytest.raises(NumericalError):
        finish(tmp_path / "mine", lr=1e30, warmup_epochs=0)
    assert (tmp_path / "mine").exists()
