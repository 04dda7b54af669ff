# `make demo` and `make test` do all set-up by themselves; a second call re-uses it.
PY := .venv/bin/python
export NO_ALBUMENTATIONS_UPDATE := 1

.PHONY: setup demo test test-all check format bench bench-gpu bench-faults pins

setup:            ## .venv with clip-pipe and its pinned requirements (BACKEND=auto|cpu|gpu)
	@tools/setup.sh

demo: setup       ## the whole journey on a rendered world with planted faults
	@.venv/bin/clip-pipe demo --out runs/demo

test: setup       ## all tests but the slow ones
	@$(PY) -m pytest -m "not slow and not gpu" -q --durations=10 -n 2 --dist loadgroup

test-all: setup   ## every test
	@$(PY) -m pytest -q

check: setup      ## format, lint, types, import directions, sizes
	@$(PY) -m ruff format --check .
	@$(PY) -m ruff check .
	@$(PY) -m mypy
	@$(PY) -m pytest -q tests/test_structure.py

format: setup
	@$(PY) -m ruff format .
	@$(PY) -m ruff check --fix .

bench: setup      ## figures of docs/benchmarks.md that take minutes
	@PYTHONPATH=. $(PY) tests/bench/startup.py
	@PYTHONPATH=. $(PY) tests/bench/match.py
	@PYTHONPATH=. $(PY) tests/bench/text_regions.py
	@PYTHONPATH=. $(PY) tests/bench/runner.py
	@PYTHONPATH=. $(PY) tests/bench/balance.py
	@PYTHONPATH=. $(PY) tests/bench/whatif.py
	@PYTHONPATH=. $(PY) tests/bench/near_duplicates.py
	@PYTHONPATH=. $(PY) tests/bench/semantic_duplicates.py
	@PYTHONPATH=. $(PY) tests/bench/usual_filters.py
	@PYTHONPATH=. $(PY) tests/bench/entries.py
	@PYTHONPATH=. $(PY) tests/bench/decode.py
	@PYTHONPATH=. $(PY) tests/bench/download.py
	@PYTHONPATH=. $(PY) tests/bench/object_store.py
	@PYTHONPATH=. $(PY) tests/bench/tokenizer.py
	@PYTHONPATH=. $(PY) tests/bench/loader.py
	@PYTHONPATH=. $(PY) tests/bench/loss_memory.py
	@PYTHONPATH=. $(PY) tests/bench/train_step.py
	@PYTHONPATH=. $(PY) tests/bench/trainers.py

bench-gpu: setup  ## training beside open_clip's on this machine's GPU (BENCH="--models ViT-B-16 --rounds 1")
	@PYTHONPATH=. $(PY) tests/bench/gpu.py $(BENCH)

bench-faults: setup  ## break runs on purpose: the table of docs/reliability.md (FAULTS="--only driver disk")
	@PYTHONPATH=. $(PY) tests/bench/faults.py $(FAULTS)

pins:             ## compile requirements/*.txt from pyproject.toml (needs uv)
	@tools/pins.sh
