"""Each mistake of `mutants.py` is found by the tests beside it."""

import mutants
import pytest


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_an_unchanged_copy_passes() -> None:
    judges = " ".join(dict.fromkeys(" ".join(mutant.tests for mutant in mutants.MUTANTS).split()))
    assert mutants.survives(mutants.Mutant("none", "rlgkd/types.py", (), judges))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("mutant", mutants.MUTANTS, ids=[mutant.name for mutant in mutants.MUTANTS])
def test_a_mistake_is_found(mutant: mutants.Mutant) -> None:
    assert not mutants.survives(mutant)
