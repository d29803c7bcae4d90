"""How many examples the tests draw: as many as `make test` can afford, times what `make fuzz` says."""

import os
from typing import Final

TIMES: Final = int(os.environ.get("FUZZ_TIMES", "1"))
