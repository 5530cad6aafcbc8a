//! Every way in which a launcher may end: no task that it has started is left behind.

use std::process::Stdio;
use std::time::Duration;

use bastion_sandbox::Faults;
use bastion_sandbox::postgres::Flaws;
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::AsyncReadExt as _;
use tokio::process::Child;

use crate::support::{PATIENCE, World};
use crate::up::{Up, bastion, ports, running, up};

pub(crate) fn send(child: &Child, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(child.id().unwrap()).unwrap()).unwrap();
    kill_process(pid, signal).unwrap();
}

/// Waits until a task is in this state.
async fn task_is(world: &World, status: &str) {
    let waiting = async {
        while !world.sandbox.tasks().iter().any(|(_, now)| *now == status) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("no task is {status}"));
}

#[tokio::test]
async fn every_signal_that_ends_a_program_stops_the_task() {
    let world = World::start().await;
    for signal in [Signal::HUP, Signal::QUIT, Signal::TERM] {
        let up = up(&world).await;
        assert_eq!(running(&world), 1);
        send(&up.child, signal);
        // A shell and the kernel both say that a terminal is gone; that is no second wish.
        if signal == Signal::HUP {
            send(&up.child, signal);
        }
        let (code, said) = up.ended().await;
        assert_eq!(code, Some(0), "{signal:?}: {said}");
        assert_eq!(running(&world), 0, "{signal:?}");
    }
    // As early as there is a task.
    world.sandbox.set_faults(Faults { agent_never_runs: true, ..Faults::default() });
    let mut child = bastion(&world, "alice", &["up", "demo"]).stderr(Stdio::piped()).spawn().unwrap();
    task_is(&world, "RUNNING").await;
    send(&child, Signal::HUP);
    let status = tokio::time::timeout(PATIENCE, child.wait()).await.unwrap().unwrap();
    assert_eq!((status.code(), running(&world)), (Some(130), 0));
    world.stop().await;
}

#[tokio::test]
async fn a_signal_that_comes_before_the_answer_to_run_task_stops_what_it_started() {
    let world = World::start().await;
    // At whatever moment of the way to the ports it comes.
    for pause in [5, 20, 50, 90, 150, 300] {
        let mut child = bastion(&world, "alice", &["up", "demo"]).stderr(Stdio::null()).spawn().unwrap();
        tokio::time::sleep(Duration::from_millis(pause)).await;
        send(&child, Signal::TERM);
        let status = tokio::time::timeout(PATIENCE, child.wait()).await.unwrap().unwrap();
        assert!(matches!(status.code(), Some(130 | 0) | None), "{pause} ms: {status:?}");
        assert_eq!(running(&world), 0, "{pause} ms");
    }
    world.stop().await;
}

/// As in a release, but that the fault is asked for: in the command itself, and in a task beside it.
#[tokio::test]
async fn a_fault_of_the_program_is_told_and_stops_the_task_that_it_started() {
    let world = World::start().await;
    for (number, fault) in ["command", "task"].into_iter().enumerate() {
        let mut up = bastion(&world, "alice", &["up", "demo"]);
        up.args(ports()).env("BASTION_TEST_FAULT", fault);
        let (code, _, said) = crate::support::finish(up).await;
        assert_eq!((code, said.matches("has a fault at src/cli/panic.rs:").count()), (101, 1), "{fault}: {said}");
        assert!(!said.contains("BASTION_TEST_FAULT"), "its own message may hold values of users: {said}");
        let stopped = async {
            while running(&world) > 0 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(PATIENCE, stopped).await.unwrap_or_else(|_| panic!("{fault}: the task goes on: {said}"));
        assert_eq!(world.sandbox.tasks().len(), number + 1);
    }
    world.stop().await;
}

#[tokio::test]
async fn the_second_signal_ends_at_once_and_what_is_left_is_told() {
    let world = World::start_with(Flaws::default(), |config| config.phase = Duration::from_secs(2)).await;
    world.sandbox.set_faults(Faults { agent_never_runs: true, ..Faults::default() });
    let mut child = bastion(&world, "alice", &["up", "demo"]).stderr(Stdio::piped()).spawn().unwrap();
    task_is(&world, "RUNNING").await;
    let task = world.sandbox.tasks()[0].0.clone();
    send(&child, Signal::INT);
    // A task takes its time to stop.
    tokio::time::sleep(Duration::from_millis(300)).await;
    send(&child, Signal::INT);
    let status = tokio::time::timeout(PATIENCE, child.wait()).await.unwrap().unwrap();
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).await.unwrap();
    assert_eq!(status.code(), Some(130), "{said}");
    for part in ["interrupted twice", &format!("task {task} may still run: bastion down demo")] {
        assert!(said.contains(part), "{part:?} is not in {said}");
    }
    world.stop().await;
}

#[tokio::test]
async fn nohup_and_the_background_outlive_the_terminal() {
    let world = World::start().await;
    let mut nohup = bastion(&world, "alice", &[]);
    let program = nohup.as_std().get_program().to_owned();
    nohup = {
        let mut command = tokio::process::Command::new("/usr/bin/nohup");
        command.arg(program).args(["up", "demo", "--json"]).args(ports()).env_clear();
        command.current_dir(world.folder.path()).env("HOME", world.folder.path());
        command.envs(world.sandbox.variables("alice")).kill_on_drop(true);
        command
    };
    let up = Up::of(nohup).await;
    send(&up.child, Signal::HUP);
    assert_eq!(up.psql("orders", "select 1").await.1, "1");
    assert_eq!(up.end().await.0, Some(0));

    let mut background = bastion(&world, "alice", &["up", "demo", "--json", "--detach"]);
    background.args(ports());
    let (code, out, err) = crate::support::finish(background).await;
    assert_eq!(code, 0, "{err}");
    let process = out.lines().find_map(|line| line.split_once("process ")?.1.split(',').next()?.parse().ok());
    let ready: serde_json::Value = serde_json::from_str(out.lines().last().unwrap()).unwrap();
    kill_process(Pid::from_raw(process.unwrap()).unwrap(), Signal::HUP).unwrap();
    let port = ready["targets"][0]["port"].to_string();
    let psql = ["-X", "-A", "-t", "-w", "-h", "localhost", "-U", "x", "-p", &port, "-c", "select 1"];
    let mut client = tokio::process::Command::new("psql");
    client.args(psql);
    assert_eq!(crate::support::finish(client).await.1, "1");
    let (code, _, err) = crate::support::finish(bastion(&world, "alice", &["down", "demo"])).await;
    assert_eq!((code, running(&world)), (0, 0), "{err}");
    world.stop().await;
}
