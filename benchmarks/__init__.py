"""Benchmarks: what a step, a decision and a long run cost; see README.md."""

import scenarios as scenarios  # before numpy: it sets the number of BLAS threads
