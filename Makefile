# Every target is one script; read those for what happens. Variables (KEEP=1, …) reach them through the environment.
.PHONY: demo test test-clients test-deploy soak bench fuzz image fmt clean

demo: ## the whole product on this machine, against a local AWS
	@scripts/demo

test: ## every check that CI runs; installs what is missing
	@scripts/test

test-clients: ## psql, drivers, dumps… against real servers, directly and through the relay; writes docs/clients.md
	@scripts/test-clients

test-deploy: ## the CDK app in an emulator of CloudFormation, and bastion up against it
	@scripts/test-deploy

soak: ## half an hour of clients and faults: no wrong byte, no stuck connection, flat memory
	@scripts/soak

bench: ## speed and size, as tables of ratios
	@scripts/bench

fuzz: ## a minute of every fuzz target; needs a nightly Rust compiler
	@scripts/fuzz

image: ## the static relay binary and, with a container engine, the image
	@scripts/image

fmt:
	cargo fmt --all

clean:
	cargo clean
	rm -rf .sandbox .tools
