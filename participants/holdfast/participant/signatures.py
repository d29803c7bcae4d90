"""Whether calls are signed with one of the participant's secrets: checks them, counts, and refuses if it is told to.

Knows headers and bodies as they arrived, and nothing of what they ask for.
"""

import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from typing import Final

from holdfast.signing import SIGNATURE_HEADER, BadSignatureError, Secret, verify

log = logging.getLogger("holdfast")

LOG_PAUSE_S: Final = 60.0
"""At most one line in this time says that calls aren't signed."""


class Seen(StrEnum):
    """What a call's signature was."""

    VALID = "valid"
    MISSING = "missing"
    WRONG = "wrong"


class Signatures:
    """Checks the signatures of calls to one participant; without secrets it checks nothing.

    With `requires`, a call that isn't signed is refused; otherwise it is only counted. `clock` is the wall clock.
    """

    def __init__(
        self,
        participant: str,
        secrets: Sequence[Secret],
        *,
        requires: bool,
        tolerance_s: float,
        clock: Callable[[], float],
    ) -> None:
        self.requires: Final = requires
        self.counts: Final[Counter[str]] = Counter({seen.value: 0 for seen in Seen})
        self._participant = participant
        self.secrets: Final = tuple(secrets)
        self.clock: Final = clock
        self._tolerance_s = tolerance_s
        self._told_at = -math.inf

    @property
    def form(self) -> str:
        """What is done with signatures, in a word for the log."""
        if not self.secrets:
            return "unchecked"
        return "require" if self.requires else "accept"

    def check(self, headers: Mapping[str, str], body: bytes) -> None:
        """Count the call. Raises BadSignatureError if it must be refused."""
        if not self.secrets:
            return
        try:
            verify(self.secrets, headers, body, now=self.clock(), tolerance_s=self._tolerance_s)
        except BadSignatureError as error:
            self.counts[Seen.WRONG if headers.get(SIGNATURE_HEADER) else Seen.MISSING] += 1
            self._tell(str(error))
            if self.requires:
                raise
            return
        self.counts[Seen.VALID] += 1

    def _tell(self, why: str) -> None:
        if time.monotonic() - self._told_at < LOG_PAUSE_S:
            return
        self._told_at = time.monotonic()
        log.warning(
            "event=signature_bad participant=%s signatures=%s missing=%d wrong=%d error=%s",
            self._participant,
            self.form,
            self.counts[Seen.MISSING],
            self.counts[Seen.WRONG],
            why,
        )


def read_secrets(texts: Sequence[str], signatures: str | None) -> tuple[tuple[Secret, ...], bool]:
    """The secrets, and whether signatures are required. Raises ValueError, which quotes no secret, or TypeError."""
    if isinstance(texts, str | bytes):
        raise TypeError('secrets must be a list: secrets=["whsec_…"]')
    if signatures not in (None, "accept", "require"):
        raise ValueError(f'signatures must be "accept" or "require", not {signatures!r}')
    if not texts and signatures is not None:
        raise ValueError(
            f'signatures="{signatures}" needs secrets=["whsec_…"], with the secret that the coordinator made'
        )
    found = []
    for place, text in enumerate(texts):
        try:
            found.append(Secret.parse(text))
        except ValueError as error:
            raise ValueError(f"secrets[{place}]: {error}") from None
    return tuple(found), bool(found) and signatures != "accept"
