"""What a result says of its origin, and the refusal to add to a file of another origin."""

from pathlib import Path

import numpy as np
import pytest

from landscape.errors import StoreError
from landscape.objective.provenance import refuse_others


def test_another_grid_than_a_files_is_quoted_by_its_ends_and_number():
    was, now = ({"options": {"x": np.linspace(-1, 1, n).tolist()}} for n in (41, 21))
    with pytest.raises(StoreError, match="made with x -1:1:41, now it is -1:1:21:"):
        refuse_others(Path("a.h5"), was, now, free=())
