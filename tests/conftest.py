"""One thread for torch in the tests: on models this small, threads wait for each other more than they work.

What is remembered across processes goes to a folder of the tests' own.
"""

import os
import tempfile

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="claygraph-tests-")
