"""What the tests of searches share."""

from pathlib import Path

import pytest

from tests.study.search_case import search


@pytest.fixture(scope="module")
def whole(case: Path) -> Path:
    """The folder of a finished search: that of the module's own `case`."""
    search(case, case.parent / "whole")
    return case.parent / "whole"
