//! Tasks in the real image instead of as processes: podman, with what the task definition and Fargate take away.

use std::collections::BTreeMap;
use std::process::Stdio;

use tokio::process::Command;

/// Loopback is the host's, because each task has an address of its own there. Without `--read-only-tmpfs=false` podman
/// would add writable folders that Fargate does not.
pub const LOCKED_DOWN: [&str; 7] = [
    "--network=host",
    "--read-only",
    "--read-only-tmpfs=false",
    "--cap-drop=all",
    "--security-opt=no-new-privileges",
    "--memory=128m",
    "--pids-limit=64",
];

/// A container outlives the engine's client if the sandbox is killed; then it ends by itself.
const LONGEST_RUN: &str = "--timeout=3600";

/// What runs tasks as containers.
#[derive(Debug, Clone)]
pub struct Container {
    /// podman's command line up to the subcommand.
    pub engine: Vec<String>,
    pub image: String,
}

impl Container {
    pub fn podman(&self) -> Command {
        let mut podman = Command::new(&self.engine[0]);
        podman.args(&self.engine[1..]);
        podman
    }

    /// Runs the image in the foreground. Values stay out of the command line.
    pub(crate) fn run(&self, name: &str, environment: &BTreeMap<String, String>) -> Command {
        let mut podman = self.podman();
        podman.args(["run", "--rm", "--pull=never", "--no-healthcheck", "--name", name, LONGEST_RUN]).args(LOCKED_DOWN);
        for (key, value) in environment {
            podman.args(["--env", key]).env(key, value);
        }
        if let Some(file) = environment.get("BASTION_EXTRA_CA_FILE") {
            podman.args(["--volume", &format!("{file}:{file}:ro")]);
        }
        podman.arg(&self.image);
        podman
    }

    /// Ends the container if it is still there, and removes it.
    pub(crate) async fn remove(&self, name: &str) {
        let mut podman = self.podman();
        podman.args(["rm", "--force", "--ignore", "--time=0", name]).stdout(Stdio::null()).stderr(Stdio::null());
        // Usually it is gone already.
        let _best_effort = podman.status().await;
    }
}
