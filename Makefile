# make test, make demo: each creates VENV when it is missing or a requirements file has changed.
VENV ?= .venv
PYTHON ?= python3
BIN = $(VENV)/bin
DEMO = --data synthetic --size 64x64

.PHONY: demo test check clean-demo

$(VENV)/.runtime: requirements.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade -r requirements.txt
	touch $@

$(VENV)/.dev: $(VENV)/.runtime requirements-dev.txt
	$(BIN)/python -m pip install --quiet --upgrade -r requirements.txt -r requirements-dev.txt
	touch $@

test: $(VENV)/.dev
	$(BIN)/python -m pytest

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# From nothing to new faces: drawn data, an autoencoder, its latents, a denoiser, 15 pictures.
demo: $(VENV)/.runtime
	rm -f checkpoints/autoencoder/demo* checkpoints/discriminator/demo* checkpoints/denoiser/demo*
	$(BIN)/python train_encoder.py $(DEMO) --name demo
	$(BIN)/python latent_diffusion.py --train --name demo
