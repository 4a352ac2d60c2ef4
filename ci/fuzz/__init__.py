"""Damaged and hostile files for every reader of the project.

    python -m ci.fuzz                                    a minute of each reader
    python -m ci.fuzz pickle onnx --seconds 600          ten minutes of each of two readers, on all cores
    python -m ci.fuzz --count 1000000 --seconds 100000   a million inputs over all readers
    python -m ci.fuzz pickle --seed 3 --input 417        one input once more, with its traceback

Each input is a change of an honest file (`changes.py`), or a pickle from a grammar (`pickles.py`), written to a folder
in memory and read as the program reads it (`readers.py`), in a forked process of limited memory and time
(`workers.py`). It may give a value, or the one line of a mistake of the user. Anything else is a finding: another
exception, a crash, 10 seconds of its own time, 1.5 GB.

Findings are kept, a folder each with the files and what happened, under `--out`; the exit status is then 1. An input
follows from the reader's name, the seed and its number alone.
"""
