# make test, make demo, make bench: each creates VENV when it is missing or a requirements file has
# changed. DATA_ROOT: where MNIST/ and celeba/ are, for the benchmarks. OUT: where gpu-check reports.
VENV ?= .venv
OUT ?= gpu-check
PYTHON ?= python3
BIN = $(VENV)/bin

.PHONY: demo test check soak bench bench-mnist gpu-check

$(VENV)/.runtime: requirements.txt
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 10) and 'needs Python 3.10 or newer')"
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
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
	$(BIN)/mypy

# 200 kills at random times and as many mutated files as 20 minutes allow; see docs/promises.md.
soak: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python tests/soak.py --kills 200 --minutes 15
	FUZZ_EXAMPLES=1000 $(BIN)/python -m pytest -q -k "damage or anything or flipped or bad_line"

# All benchmarks but the training curves: about 6 minutes on 2 cores with AVX512-bf16. They write
# up to 5 GB to the folder for temporary files (TMPDIR).
bench: $(VENV)/.dev
	$(BIN)/python -m benchmarks $(if $(DATA_ROOT),--data-root "$(DATA_ROOT)")

# Frechet distance after 10 and 30 minutes of training, ours and the peers': hours.
bench-mnist: $(VENV)/.dev
	$(BIN)/python -m benchmarks.mnist $(if $(DATA_ROOT),--data-root "$(DATA_ROOT)")

# For whoever has a GPU, within 9 minutes: tests on it, benchmarks with its targets, trainings with
# pictures, and a report in OUT. Without DATA_ROOT it learns drawn faces, and no digits.
gpu-check: $(VENV)/.dev
	$(BIN)/python -m benchmarks.gpu_check --out "$(OUT)" $(if $(DATA_ROOT),--data-root "$(DATA_ROOT)")

# From nothing to new faces: drawn data, an autoencoder, its latents, a denoiser, 15 pictures.
# Small networks and short trainings: about 5 minutes on 2 cores with AVX512-bf16.
demo: $(VENV)/.runtime
	rm -f checkpoints/*/demo_epoch* checkpoints/*/demo.state*
	$(BIN)/python train_encoder.py --data synthetic --name demo --epochs 1 --batch 8 \
		--channels 16 --gan-weight 0
	$(BIN)/python latent_diffusion.py --train --name demo --epochs 11 --lr 2e-3 --channels 32 \
		--blocks 1 --encoder checkpoints/autoencoder/demo_epoch0001.safetensors
	MPLBACKEND=agg $(BIN)/python latent_diffusion.py --show checkpoints/denoiser/demo_epoch0011.safetensors
	@echo "15 new faces: fig/denoiser/generated.png"
