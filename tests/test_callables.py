"""Users' own callables are found by name, and what is wrong with a name is said in one line."""

import sys

import pytest

from landscape.callables import resolve
from landscape.errors import InputError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with modules of the user's, and nothing of it left on the path afterwards."""
    (tmp_path / "users_code.py").write_text("class Nets:\n    @staticmethod\n    def small(): return 7\nwidth = 3\n")
    (tmp_path / "users_broken.py").write_text("raise RuntimeError('two\\nlines')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("users_code", None)


@pytest.mark.usefixtures("folder")
def test_a_callable_of_the_current_folder_is_found():
    assert resolve("users_code:Nets.small", "model")() == 7


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("users_code", "model='users_code' is not of the form package.module:callable"),
        (":small", "is not of the form"),
        ("./users_code.py:Nets", "is not of the form"),
        ("users_cod:Nets", "cannot import users_cod from .*: ModuleNotFoundError: No module named 'users_cod'"),
        ("users_broken:net", "cannot import users_broken from .*: RuntimeError: two lines"),
        ("users_code:large", "users_code has no 'large'"),
        ("users_code:Nets.large", "Nets has no 'large'"),
        ("users_code:width", "model='users_code:width' is not a callable but int"),
    ],
)
def test_a_name_that_leads_nowhere_is_refused_in_one_line(spec, message):
    with pytest.raises(InputError, match=message) as caught:
        resolve(spec, "model")
    assert "\n" not in str(caught.value)
