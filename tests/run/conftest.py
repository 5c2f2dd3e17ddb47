"""The synthetic results of tests/compare."""

from tests.compare.conftest import make_result  # noqa: F401
