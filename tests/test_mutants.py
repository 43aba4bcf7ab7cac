"""Each mistake of `mutants.py` still finds the code that it changes, and is found by its tests."""

from __future__ import annotations

import dataclasses

import mutants
import pytest
from on_request import minutes

every_mutant = pytest.mark.parametrize("mutant", mutants.MUTANTS, ids=[mutant.name for mutant in mutants.MUTANTS])


@every_mutant
def test_the_code_that_a_mutant_changes_is_there(mutant: mutants.Mutant) -> None:
    source = (mutants.ROOT / mutant.file).read_text()
    changed = mutants.mutated(source, mutant)
    compile(changed, mutant.file, "exec")
    assert changed != source


SOURCE = '''
SIGN = 1


class Loss:
    def value(self, x):
        """Ünïcode before the expression, in the same line and above it."""
        é = 2; return (x +
            SIGN) * é
'''
EXAMPLE = mutants.Mutant(name="m", file="f.py", function="Loss.value", changes=(("x + SIGN", "x - SIGN"),), tests="")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "return ((x - SIGN)) * é"),
        ({"function": "SIGN", "changes": (("SIGN = 1", "SIGN = -1"),)}, "SIGN = -1\n"),
        ({"changes": (("x", "SIGN"), ("SIGN", "x"))}, "return ((SIGN) +\n            (x)) * é"),
    ],
)
def test_a_change_replaces_the_expression_alone(changes: dict[str, object], expected: str) -> None:
    assert expected in mutants.mutated(SOURCE, dataclasses.replace(EXAMPLE, **changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"function": "Loss.other"}, r"m: f.py holds 0 times Loss.other"),
        ({"changes": (("x - SIGN", "x"),)}, r"m: Loss.value in f.py holds 0 times 'x - SIGN'"),
        ({"function": "Loss", "changes": (("self", "x"),)}, r"holds 0 times 'self'"),
        ({"function": "SIGN", "changes": (("x + SIGN", "x"),)}, r"holds 0 times"),
    ],
)
def test_a_mutant_that_does_not_find_its_code_is_an_error(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mutants.mutated(SOURCE, dataclasses.replace(EXAMPLE, **changes))


@minutes
@pytest.mark.timeout(900)
def test_an_unchanged_copy_passes() -> None:
    tests = " ".join(dict.fromkeys(" ".join(mutant.tests for mutant in mutants.MUTANTS).split()))
    assert mutants.survives(None, tests)


@minutes
@pytest.mark.timeout(900)
@every_mutant
def test_a_mistake_is_found(mutant: mutants.Mutant) -> None:
    assert not mutants.survives(mutant, mutant.tests)
