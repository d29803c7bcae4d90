"""What survivors mean: the score of a module, and whether the list of explained survivors is true."""

import tomllib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

FILE: Final = Path(__file__).with_name("survivors.toml")

Key = tuple[str, str, str]
"""The function, its lines as they are, and as the mutant has them."""


@dataclass(frozen=True, slots=True)
class Mutant:
    """A source with a mistake in it.

    `was` and `becomes` are the lines that differ, with single blanks; `within` is the function or class.
    """

    within: str
    was: str
    becomes: str
    line: int
    source: str

    @property
    def key(self) -> Key:
        return self.within, self.was, self.becomes


@dataclass(frozen=True, slots=True)
class Explained:
    """A survivor that is equivalent to the code, or that tests should not tell from it, and why."""

    key: Key
    why: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of the mutants of one module.

    Of all `mutants`, `tried` were run. `invalid` can't be imported and don't count; `endless` are among the killed: the
    tests did not end in five times their time. `gone` are explained, and killed or not made any more.
    """

    mutants: int
    tried: int
    invalid: int
    endless: int
    explained: tuple[tuple[Mutant, str], ...]
    unexplained: tuple[Mutant, ...]
    gone: tuple[Key, ...]

    @property
    def survived(self) -> int:
        return len(self.explained) + len(self.unexplained)

    @property
    def killed(self) -> int:
        return self.tried - self.invalid - self.survived

    @property
    def score(self) -> float:
        """Per cent killed of those that can be imported; 0 of nothing."""
        counted = self.tried - self.invalid
        return 100 * self.killed / counted if counted else 0.0

    def is_good(self, score_min: float) -> bool:
        return self.score >= score_min and not self.unexplained and not self.gone


def explained(path: str) -> list[Explained]:
    """What survivors.toml says of the module."""
    entries = tomllib.loads(FILE.read_text(encoding="utf-8")).get("survivor", ())
    return [
        Explained((each["within"], each["was"], each["becomes"]), each["why"])
        for each in entries
        if each["module"] == path
    ]


def judged(
    mutants: int, tried: int, invalid: int, endless: int, survivors: Iterable[Mutant], known: Iterable[Explained]
) -> Verdict:
    """Each entry explains one survivor, so that a second one of the same words needs an entry of its own."""
    left = Counter(each.key for each in known)
    why = {each.key: each.why for each in known}
    listed, unlisted = [], []
    for mutant in survivors:
        if left[mutant.key]:
            left[mutant.key] -= 1
            listed.append((mutant, why[mutant.key]))
        else:
            unlisted.append(mutant)
    return Verdict(mutants, tried, invalid, endless, tuple(listed), tuple(unlisted), tuple(left.elements()))
