"""Studies are drawn as in the tests of experiments: without pictures."""

from tests.experiments.conftest import without_pictures  # noqa: F401 (a fixture of all tests here)
