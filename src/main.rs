//! The `bastion` program: the relay that runs in the Fargate task and the launcher that runs on the laptop.

use std::process::ExitCode;

fn main() -> ExitCode {
    bastion::cli::main()
}
