# make demo: rate the two bundled clips.   make test: the whole suite.   make lint: ruff and pyright.
# make learn: train a tiny judge from nothing and measure it (benchmarks/learning); under an hour on two cores.
# Each makes its own environment in .venv first, once; PYTHON names the interpreter it is made from (3.11 or later).

PYTHON ?= python3
PIP = .venv/bin/pip install --quiet --disable-pip-version-check
CLIPS = $(wildcard vqathinker_jax/assets/clips/*.mp4)

.PHONY: demo learn test lint clean

demo: .venv/runtime
	.venv/bin/python run.py score $(CLIPS)

learn: .venv/runtime
	.venv/bin/python -m tools.learn

# One worker a core, a file's tests on one of them, so that what they share is computed once; in the order of their names,
# for the files with the longest tests have few, and would come last.
test: .venv/test
	.venv/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: .venv/test
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/pyright --pythonpath .venv/bin/python

clean:
	rm -rf .venv

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/runtime: pyproject.toml | .venv/bin/python
	$(PIP) -e .
	touch $@

# torch by its exact version on the command line: a range brings the multi-gigabyte CUDA build.
.venv/test: pyproject.toml | .venv/bin/python
	$(PIP) torch==2.13.0 -e '.[test]'
	touch $@

# The compiler for TPUs, of the release that goes with JAX, where plans find it and JAX does not.
.venv/libtpu: | .venv/test
	$(PIP) --no-deps --target $@ "$$(.venv/bin/python -c "from importlib.metadata import requires; print(next(\
	  each.partition(';')[0] for each in requires('jax') if each.startswith('libtpu')))")"

# The compiler for NVIDIA's GPUs, of JAX's own version, likewise.
.venv/cuda: | .venv/test
	version=$$(.venv/bin/python -c "from importlib.metadata import version; print(version('jax'))"); \
	  $(PIP) --no-deps --target $@ jax-cuda13-plugin==$$version jax-cuda13-pjrt==$$version
