VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin

.PHONY: demo test test-slow lint browser fuzz clean

demo: $(VENV)/installed  ## Install the package and denoise a real photo.
	@mkdir -p build
	$(BIN)/tbsn denoise examples/letters.png -o build/letters_denoised.png --overwrite
	@echo "Look at build/letters_denoised.png, beside examples/letters.png."

test: $(VENV)/installed-test  ## Install what tests need and run them all, but the slow ones.
	$(BIN)/python -m pytest -m "not slow"

test-slow: $(VENV)/installed-test  ## Kill training fifty times; several processes.
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/installed-test  ## Style and types.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

browser:  ## Chromium, for the tests of the page, if it is missing: Debian's, as root.
	@command -v chromium && command -v chromedriver || { apt-get update -qq && \
	DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium chromium-driver; }

fuzz: $(VENV)/installed-fuzz  ## Damaged images, for two minutes, and models.
	$(BIN)/python fuzz/read.py -max_total_time=120
	$(BIN)/python fuzz/model.py -max_total_time=20

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[openvino,ncnn,train,serve,raw,ray,test,lint]'
	@touch $@

$(VENV)/installed-fuzz: $(VENV)/installed
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[fuzz]'
	@touch $@

clean:
	rm -rf $(VENV) build .pytest_cache .ruff_cache .hypothesis
