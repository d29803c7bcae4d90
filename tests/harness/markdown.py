"""What a Markdown page says, for tests: its headings, links and code blocks. Reads text and nothing else."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from markdown_it import MarkdownIt
from markdown_it.token import Token

from tests.harness.repository import ROOT

FILE_NAME: Final = re.compile(r"(?:[Ss]ave this as|with this)\s`([\w./-]+\.\w+)`:\Z")
DIRECTIVE: Final = re.compile(r"<!-- reader: (.+?) -->")
"""A comment that tells a test what the reader does between two code blocks."""


@dataclass(frozen=True, slots=True)
class Code:
    """A fenced block. `file` is where the reader saves it: the paragraph before it ends in "save this as `file`:"."""

    language: str
    text: str
    line: int
    file: str | None = None


@dataclass(frozen=True, slots=True)
class Directive:
    """What the reader is to do, in the words of a comment."""

    text: str


class Page:
    """One page, by its path in the repository."""

    def __init__(self, path: str) -> None:
        self.path: Final = path
        self.text: Final = (ROOT / path).read_text(encoding="utf-8")
        self.tokens: Final = MarkdownIt("commonmark").enable("table").parse(self.text)

    @cached_property
    def anchors(self) -> set[str]:
        """The fragments that a link may name, as GitHub makes them from headings."""
        seen: Counter[str] = Counter()
        anchors = set()
        for slug in (_slug(_plain(inline)) for opening, inline in self._pairs() if opening.type == "heading_open"):
            anchors.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
            seen[slug] += 1
        return anchors

    @cached_property
    def links(self) -> list[str]:
        """Where links and images point to."""
        children = [child for token in self.tokens for child in token.children or ()]
        found = [child.attrGet("href") or child.attrGet("src") for child in children]
        return [str(each) for each in found if each]

    @cached_property
    def steps(self) -> list[Code | Directive]:
        """Code blocks and directives, in order."""
        steps: list[Code | Directive] = []
        before = ""
        for token in self.tokens:
            if token.type == "fence":
                steps.append(_code(token, before))
            elif token.type == "html_block":
                steps += [Directive(text) for text in DIRECTIVE.findall(token.content)]
            before = token.content if token.type == "inline" else before if token.type == "paragraph_close" else ""
        return steps

    def code(self, *languages: str) -> list[Code]:
        """The fenced blocks of these languages."""
        return [step for step in self.steps if isinstance(step, Code) and step.language in languages]

    def section(self, heading: str) -> str:
        """The text under a heading, to the next one of the same level or above."""
        match = re.search(rf"^(#+) {re.escape(heading)}$", self.text, re.MULTILINE)
        assert match, f"{self.path} has no heading {heading!r}"
        rest = self.text[match.end() :]
        end = re.search(rf"^#{{1,{len(match[1])}}} ", rest, re.MULTILINE)
        return rest[: end.start()] if end else rest

    def _pairs(self) -> Iterator[tuple[Token, Token]]:
        return zip(self.tokens, self.tokens[1:], strict=False)


def _code(token: Token, before: str) -> Code:
    named = FILE_NAME.search(before)
    line = token.map[0] + 1 if token.map else 0
    return Code(token.info.strip(), token.content, line, named[1] if named else None)


def _plain(inline: Token) -> str:
    return "".join(child.content for child in inline.children or () if child.type in {"text", "code_inline"})


def _slug(heading: str) -> str:
    kept = re.sub(r"[^\w\- ]", "", heading.strip().lower())
    return kept.replace(" ", "-")
