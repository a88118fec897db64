"""Which numbers of groups a nested cross-validation can split."""

import pytest

from probes.evaluation.folds import nested_folds, too_few_groups


@pytest.mark.parametrize("groups", range(1, 9))
def test_too_few_groups_is_exactly_what_cannot_be_split(groups):
    for folds in range(2, 9):
        try:
            nested_folds([str(g) for g in range(groups)], folds, 0)
            possible = True
        except ValueError:
            possible = False
        assert (too_few_groups(groups, folds) == "") == possible
