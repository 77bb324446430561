"""What `make test` tries of several ways that prove the same: one of them, picked by a seed.

The seed is in pytest's header; ``LAB_SEED=N`` sets it. `make test-all` runs them all.
"""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from typing import TypeVar

import pytest

T = TypeVar("T")
SEED = os.environ.setdefault("LAB_SEED", str(random.SystemRandom().randrange(10_000)))
"""In the environment, so that all processes of one run pick the same."""


def one_of(name: str, choices: Sequence[T]) -> T:
    """One of ``choices``; another ``name`` picks another one."""
    return random.Random(f"{SEED} {name}").choice(choices)


def params(name: str, choices: Sequence[T]) -> list[pytest.ParameterSet]:
    """All ``choices`` as parameters; all but the picked one are thorough."""
    picked = one_of(name, choices)
    return [
        pytest.param(choice, marks=() if choice is picked else pytest.mark.thorough)
        for choice in choices
    ]
