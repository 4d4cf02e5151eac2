"What mmlit costs, as ratios within one process; `python -m benchmarks --help`, and README.md beside this file."
