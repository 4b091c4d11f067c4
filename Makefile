# SPDX-License-Identifier: Apache-2.0
# The front door: each target hands over to CMake or to a script in scripts/. `make help` lists them.

KILLS ?= 20000
PODS ?= 100
FUZZ_TIME ?= 60
HOURS_SECONDS ?= 3600
BENCH_RUNS ?= 9
BENCH_MTU ?= 1500
SCALE_PODS ?= 1000
SCALE_IDLE ?= 30
STORM_SECONDS ?= 60
PROVIDER ?= local
PREFIX ?= /usr/local
DESTDIR ?=
JOBS ?= 2

export JOBS

.DEFAULT_GOAL := help
.PHONY: help setup build release demo test kill-loop bench-tunnel bench-scale bench-network blackout storm takeover throttled hours fuzz fuzz-coverage lint tidy format coverage man install clean

help: ## list the targets (this text)
	@echo "usage: make TARGET [VARIABLE=value]"; echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## install what building and testing need (Debian packages, a Python venv in build/venv)
	@scripts/setup

build: ## build everything with gcc into build/ (programs in build/bin)
	@scripts/setup --build
	@scripts/build dev

release: ## optimised build into build/release
	@scripts/setup --build
	@scripts/build release

demo: ## run one pod on the `local` provider (PROVIDER=aws: on its test double) and show its output and a timeline
	@if [ "$(PROVIDER)" = local ]; then scripts/setup --build; else scripts/setup; fi
	@scripts/build dev
	@PROVIDER=$(PROVIDER) scripts/demo

test: ## all tests: gcc, clang, address+undefined and thread sanitizers, lint (STRICT=1: a skip fails)
	@scripts/setup
	@scripts/test

kill-loop: ## the relay's kill loop in its long form (KILLS=20000); the last line is JSON
	@scripts/setup --build >&2
	@scripts/build dev kill_loop >&2
	@build/bin/kill_loop --kills $(KILLS)

bench-tunnel: ## the tunnel beside a plain relay and stunnel (root; BENCH_RUNS=9); the last line is JSON
	@scripts/setup --build >&2
	@scripts/build release bench_tunnel >&2
	@BENCH_RUNS=$(BENCH_RUNS) BENCH_LOG=build/bench-tunnel.log build/release/bin/bench_tunnel

bench-scale: ## 1000 pods on one daemon: memory, CPU, start rate, what is left (root; SCALE_PODS, SCALE_IDLE s); JSON
	@scripts/setup --build >&2
	@scripts/build release bench_scale >&2
	@SCALE_PODS=$(SCALE_PODS) SCALE_IDLE=$(SCALE_IDLE) BENCH_LOG=build/bench-scale.log build/release/bin/bench_scale

bench-network: ## the pod's network beside a hand-made one, and 500 pods (root; BENCH_RUNS, BENCH_MTU=1500); JSON
	@scripts/setup >&2
	@scripts/build release bench_network >&2
	@BENCH_RUNS=$(BENCH_RUNS) BENCH_MTU=$(BENCH_MTU) BENCH_LOG=build/bench-network.log build/release/bin/bench_network

blackout: ## resets, blackholes and kills of the forwarder under 4 GiB of load (root); the last line is JSON
	@scripts/setup --build >&2
	@scripts/build dev blackout >&2
	@build/bin/blackout --log build/blackout.log

storm: ## 500 SIGKILLs of the daemon under load, then how fast PODS=100 resume (root); the last line is JSON
	@scripts/setup --build >&2
	@scripts/build dev storm >&2
	@build/bin/storm --pods $(PODS) --log build/storm.log

takeover: ## an older version and this one take over from each other with PODS=100 under load (root); the last line is JSON
	@scripts/setup --build >&2
	@scripts/build dev takeover >&2
	@test/takeover/older.sh build/older >&2
	@build/bin/takeover --pods $(PODS) --older build/older --log build/takeover.log

throttled: ## 50 pods on a node that AWS's double lets make one call per second (root, minutes)
	@scripts/setup >&2
	@scripts/build dev >&2
	@THROTTLE_RATE=1 THROTTLE_PODS=50 PEERPOD_PROVIDER=aws PEERPOD_BIN=build/bin PEERPOD_SOURCE=. \
		test/pytest_run.py --isolated test/chain/aws_throttled_test.py -s

hours: ## connections of Go's and Rust's ttrpc libraries that last HOURS_SECONDS=3600 (root); the last line is JSON
	@scripts/setup >&2
	@scripts/build dev >&2
	@ctest --test-dir build -R '^foreign\.(go|rust)$$' >&2
	@echo '{"name": "hours", "pass": false}' >build/hours.json
	@HOURS_SECONDS=$(HOURS_SECONDS) HOURS_RESULT=build/hours.json PEERPOD_BIN=$(CURDIR)/build/bin PEERPOD_SOURCE=. \
		test/pytest_run.py --isolated test/chain/hours_test.py >&2; status=$$?; cat build/hours.json; exit $$status

chain-aws: ## every test of restarts, ends, take-over and leaks on AWS's double (root, minutes; STORM_SECONDS=60)
	@scripts/setup >&2
	@scripts/build dev >&2
	@for part in recovery reconcile lifecycle ends takeover storm network; do \
		EVERY_TEST=1 STORM_SECONDS=$(STORM_SECONDS) PEERPOD_PROVIDER=aws PEERPOD_BIN=build/bin PEERPOD_SOURCE=. \
			test/pytest_run.py --isolated test/chain/test_$$part.py || exit 1; done

fuzz: ## libFuzzer on every target (FUZZ_TIME=60 seconds each); the last line is JSON
	@scripts/setup >&2
	@scripts/build asan fuzz_targets >&2
	@FUZZ_TIME=$(FUZZ_TIME) scripts/fuzz

fuzz-coverage: ## which part of its parser each fuzz target reaches (llvm-cov), in a table; below 85 % it fails; JSON
	@scripts/setup >&2
	@scripts/build fuzz-coverage fuzz_targets >&2
	@scripts/fuzz-coverage

lint: ## the rules of the tree (layers, names, format, docs), shellcheck and clang-tidy
	@scripts/setup
	@scripts/lint

tidy: ## clang-tidy over every source file
	@scripts/setup
	@scripts/lint tidy

format: ## reformat the C sources in place
	@scripts/setup
	@scripts/lint format

coverage: ## build with gcov, run the tests, write build/coverage/html and a summary
	@scripts/setup
	@scripts/coverage

man: ## man pages from docs/man into build/man
	@scripts/setup
	@scripts/man

install: release man ## install programs, entry point, units and man pages (PREFIX, DESTDIR)
	@DESTDIR="$(DESTDIR)" cmake --install build/release --prefix "$(PREFIX)"

clean: ## remove build/
	rm -rf build
