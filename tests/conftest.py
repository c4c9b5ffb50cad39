"""One thread for torch in the tests: on models this small, threads wait for each other more than they work.

The store is a temporary one: tests neither use what the user's holds nor add to it.
"""

import os
from tempfile import TemporaryDirectory

os.environ.setdefault("OMP_NUM_THREADS", "1")
CACHE = TemporaryDirectory(prefix="claygraph-tests-")
os.environ["XDG_CACHE_HOME"] = CACHE.name
