"""Say what is connected, and run it: scenario files, the runner, the command line."""

import os

# Two BLAS threads made small power flows 20 times slower; this counts only before numpy is imported.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
