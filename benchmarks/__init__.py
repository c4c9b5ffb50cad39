"""Side-by-side measurements: ``python -m benchmarks`` lists them, ``python -m benchmarks.NAME --help`` explains one."""
