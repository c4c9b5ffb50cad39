"""One thread for torch in the tests: on models this small, threads wait for each other more than they work."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
