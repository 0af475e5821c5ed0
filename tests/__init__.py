"""The tests run on every core, each on one thread: torch reads how many when it is imported, which is after this."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
