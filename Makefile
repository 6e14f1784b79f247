# Two commands do everything from a fresh clone: `make demo` and `make test`.
PYTHON ?= python3
# Where pip looks for torch's CPU builds; empty takes what pip is configured for.
# A CPU-only machine on the public internet sets TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=
BUF := 1.75.0
UV := 0.13.9
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test fuzz test-node test-compose lint protos bench bench-scheduler bench-gpu study check-gpu serve dist lock clean

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) \
	  -c constraints.txt -e ".[dev,protos]"
	touch $@

demo: $(INSTALLED)  ## Serve the shipped model and stream a dozen answers
	$(BIN)/python experiments/demo.py

serve: $(INSTALLED)  ## Serve the shipped model on 127.0.0.1:50051
	$(BIN)/nanoserve serve

test: $(INSTALLED)  ## All tests that this machine can run, one process a core
	$(BIN)/python -m pytest -n auto --dist loadfile

test-node: $(INSTALLED)  ## The Node client, where there are Node 20, npm and a registry
	@if ! command -v node >/dev/null || ! command -v npm >/dev/null; then \
	  echo "test-node skipped: node or npm is not installed"; \
	elif ! node -e 'process.exit(Number(parseInt(process.versions.node) < 20))'; then echo "test-node skipped: it wants Node 20"; \
	elif ! (cd client/node && npm view --fetch-retries=0 @grpc/grpc-js version >/dev/null 2>&1); then \
	  echo "test-node skipped: npm reaches no registry"; \
	else (cd client/node && npm ci --ignore-scripts --no-audit --no-fund) \
	  && $(BIN)/python -m pytest tests/client/test_node_client.py; fi

fuzz: $(INSTALLED)  ## 10,000 wild calls of both services; docs/security.md says what must hold
	FUZZ_CALLS=10000 $(BIN)/python -m pytest -s tests/e2e/test_fuzzed_api.py tests/executor_svc/test_fuzzed_plans.py

test-compose: $(INSTALLED)  ## The images and docker-compose.yml, where a container engine runs
	$(BIN)/python tests/compose/run.py

lint: $(INSTALLED)  ## Formatting, types, import contracts, protos
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python protos/generate.py --check
	@if command -v npx >/dev/null; then npx --yes @bufbuild/buf@$(BUF) lint; \
	  else echo "buf lint skipped: npx is not installed"; fi

protos: $(INSTALLED)  ## Generate the Python stubs beside the .proto files
	$(BIN)/python protos/generate.py

dist: $(INSTALLED)  ## The source distribution and the wheel, in dist/
	rm -rf dist
	$(BIN)/python -m pip install --quiet --require-hashes -r deploy/requirements/build.txt
	$(BIN)/python -m hatchling build

lock: $(INSTALLED)  ## Lock by hash what the images hold, at the versions of constraints.txt
	$(BIN)/python -m pip install --quiet uv==$(UV)
	for name in build executor scheduler; do $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --no-annotate \
	  --generate-hashes --custom-compile-command "make lock" --constraints constraints.txt \
	  --output-file deploy/requirements/$$name.txt deploy/requirements/$$name.in || exit 1; done

bench: bench-scheduler  ## All benchmarks that need no GPU

bench-scheduler: $(INSTALLED)  ## The scheduler core alone, and its side of a step
	$(BIN)/python benchmarks/scheduler.py

bench-gpu: $(INSTALLED)  ## Every target on this machine's GPU, both model shapes, through both services
	$(BIN)/python benchmarks/targets.py --shapes 0.6b,14b --out targets.json

# Kernels whose programs work together or load ahead, but for the resident one and those over peer memory; all shapes.
KERNEL_TESTS := $(addprefix tests/executor_svc/kernels/test_, decode_attention.py prefill_attention.py small_linear.py)

STUDY ?= .run/study
study: $(INSTALLED)  ## Each optimisation on its own, on the demo model and this CPU: JSON, pictures, ratios, in STUDY
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[plots]"
	$(BIN)/python experiments/study.py --device cpu --out $(STUDY)
	$(BIN)/python plots/study.py --data $(STUDY) --out $(STUDY)
	$(BIN)/python experiments/study_report.py --data $(STUDY)

check-gpu: $(INSTALLED)  ## What only a GPU can show: its tests, all kernels' tests there, and these under compute-sanitizer
	$(BIN)/python -m pytest -m gpu
	$(BIN)/python -m pytest tests/executor_svc/kernels
	for tool in memcheck racecheck; do compute-sanitizer --tool $$tool --target-processes all --error-exitcode 9 \
	  $(BIN)/python -m pytest -q -x $(KERNEL_TESTS) -k "(sees or shares or whole or bits) and not cover" || exit 1; done
	compute-sanitizer --tool memcheck --target-processes all --error-exitcode 9 \
	  $(BIN)/python -m pytest -q -x tests/executor_svc/kernels/test_resident.py

clean:
	rm -rf $(VENV) dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis
