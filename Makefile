# Everything sets itself up: `make demo` and `make test` work in a fresh checkout with nothing but Python and make.

PYTHON ?= python3
JOBS   ?= 2
VENV   := .venv
PY     := $(VENV)/bin/python
READY  := $(VENV)/.ready
DIGITS := ddpm_deploy/assets/digits
SOURCES := ddpm_deploy tests examples docs benchmarks

# Checked against in the tests; their own requirements (torchvision, an older protobuf) would disturb torch's CPU build.
PEERS := denoising-diffusion-pytorch einops ema-pytorch pytorch-fid tritonclient python-rapidjson

.PHONY: demo shapes test lint format bench soak bundle shapes-bundle quality plans figures clean help

help:
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 10

demo: $(READY) ## train on digits, export, prove parity, sample: pictures and a report in runs/demo
	$(PY) examples/digits_demo.py --out runs/demo

shapes: $(READY) ## draw prompts with the shapes model of the package and judge them: runs/shapes/report.md
	$(PY) examples/shapes_demo.py --out runs/shapes --bundle shapes

test: $(READY) ## all tests, on two processes
	$(PY) -m pytest --numprocesses=$(JOBS) --dist=loadfile

lint: $(READY) ## ruff, ruff format and mypy
	$(PY) -m ruff check $(wildcard $(SOURCES))
	$(PY) -m ruff format --check $(wildcard $(SOURCES))
	$(PY) -m mypy

format: $(READY) ## put the code into shape
	$(PY) -m ruff check --fix $(wildcard $(SOURCES))
	$(PY) -m ruff format $(wildcard $(SOURCES))

bench: $(READY) ## every backend beside its peers, and a report in benchmarks/reports
	$(PY) -m pytest benchmarks

soak: $(READY) ## kill exports, writers and jobs that draw shards; end a loaded service often, and load it for half an hour
	PYTHONPATH=tests:tests/trust:. $(PY) tests/trust/export_killer.py runs/soak/exports 200
	PYTHONPATH=tests:. $(PY) tests/bundle_killer.py moments runs/soak/writers/b 0 200
	PYTHONPATH=. $(PY) tests/bulk/shard_killer.py runs/soak/shards 100
	PYTHONPATH=. $(PY) tests/bulk/shard_killer.py runs/soak/shard-calls calls
	PYTHONPATH=tests/serve:. $(PY) tests/serve/drain_soak.py 50
	$(PY) -m benchmarks.soak_serving --minutes 30

bundle: $(READY) ## train and export the digits bundle inside the package again
	$(PY) examples/digits_demo.py --out runs/bundle --num-chain 500 --install

shapes-bundle: $(READY) ## train the shapes model for half an hour or so, and put it into the package again
	$(PY) examples/shapes_demo.py --out runs/shapes-bundle --install

QUALITY := runs/quality

quality: $(READY) $(QUALITY)/bundle/bundle.json ## bits/dim, distances, guidance and the solver study: docs/quality.md
	$(PY) -m ddpm_deploy.evaluate $(QUALITY)/bundle --data digits --bound full --bound-samples 100 \
		--weights 0,1,1.5,2,3,5 --skip-unavailable \
		--beside torch,openvino,openvino:bf16,onnxruntime:int8,openvino:int8,openvino:int8-bf16 --out $(QUALITY)/digits
	$(PY) -m ddpm_deploy.evaluate shapes --data shapes --bound-samples 100 --num 500 --weights 1,2,4 \
		--out $(QUALITY)/shapes
	$(PY) -m ddpm_deploy.evaluate digits --data digits --bound none --num 1000 --study \
		--solvers ddim,dpmpp_2m,unipc --spacings trailing,quadratic,logsnr,tuned --nfes 4,6,8,12,25 \
		--out $(QUALITY)/study
	$(PY) docs/make_quality.py $(QUALITY)

$(QUALITY)/bundle/bundle.json: $(DIGITS)/bundle.json | $(READY)
	$(PY) docs/export_digits.py $(@D)

plans: $(READY) ## tuned timesteps against all hand-made ones, on digits and shapes: docs/quality.md
	$(PY) docs/tuned_plans.py digits --out $(QUALITY)/plans
	$(PY) docs/tuned_plans.py shapes --out $(QUALITY)/plans
	$(PY) docs/make_quality.py $(QUALITY)

figures: $(READY) ## draw the pictures of the docs again
	$(PY) docs/make_figures.py

clean: ## remove the virtual environment and all runs
	rm -rf $(VENV) runs

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[cpu,openvino,tensorrt,train,export,serve,distributed,plot,bench,dev]'
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps $(PEERS)
	@touch $(READY)
