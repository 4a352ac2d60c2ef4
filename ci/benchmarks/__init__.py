"""Benchmarks: what the project does beside the way that one would otherwise do it, in the same run.

    python -m ci.benchmarks --list            the names, each with what it measures
    python -m ci.benchmarks search            one of them
    python -m ci.benchmarks search --help     its options
    python -m ci.benchmarks all               all that need no set-up
    python -m ci.benchmarks all --quick       at sizes that show that they run, and nothing else

A benchmark is a module in this folder: its docstring says what is compared, and `run(bench, *, option=default, ...)`
does it with `harness/bench.py`; its keywords are its options, `QUICK` has their values for --quick. docs/benchmarks.md
tells how to read what is printed, and the JSON that is kept in work_dirs/benchmarks.
"""
