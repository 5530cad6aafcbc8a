//! Several users of one task, and `bastion down`: who stops what.

use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::process::Command;

use crate::support::{PATIENCE, World, finish};
use crate::up::{Up, bastion, ports, running, up, up_with};
use crate::ways_out::send;

/// A `bastion connect` that is ready.
async fn connect(world: &World) -> Up {
    let mut command = bastion(world, "alice", &["connect", "demo", "--json"]);
    command.args(ports());
    Up::of(command).await
}

#[tokio::test]
async fn the_last_user_of_a_task_stops_it() {
    let world = World::start().await;
    for joins in ["up", "connect"] {
        let first = up(&world).await;
        let second = if joins == "up" { up(&world).await } else { connect(&world).await };
        assert_eq!(first.ready["task"], second.ready["task"]);
        let (asked, ended) = tokio::join!(second.psql("orders", "select 'here' from pg_sleep(2)"), async {
            tokio::time::sleep(Duration::from_millis(500)).await;
            first.end().await
        });
        // Nobody has cut the statement of the other.
        assert_eq!((asked.0, asked.1.as_str()), (0, "here"), "{joins}: {}", asked.2);
        assert_eq!((ended.0, running(&world)), (Some(0), 1), "{joins}");
        assert_eq!(second.psql("orders", "select 1").await.1, "1");
        assert_eq!((second.end().await.0, running(&world)), (Some(0), 0), "{joins}");
    }
    world.stop().await;
}

#[tokio::test]
async fn two_that_leave_together_leave_no_task_and_a_kept_one_stays() {
    let world = World::start().await;
    let (first, second) = (up(&world).await, up(&world).await);
    let (one, other) = tokio::join!(first.end(), second.end());
    assert_eq!((one.0, other.0, running(&world)), (Some(0), Some(0), 0));

    let first = up_with(&world, &["--keep"]).await;
    let second = up(&world).await;
    assert_eq!(first.end().await.0, Some(0));
    assert_eq!(second.end().await.0, Some(0));
    assert_eq!(running(&world), 1, "somebody wanted it to stay");
    let (code, _, err) = finish(bastion(&world, "alice", &["down", "demo"])).await;
    assert_eq!((code, running(&world)), (0, 0), "{err}");
    world.stop().await;
}

/// `up --detach --wake`: the number of the process, and the port of orders.
async fn detached(world: &World) -> (u32, u16) {
    let mut command = bastion(world, "alice", &["up", "demo", "--json", "--detach", "--wake"]);
    command.args(ports());
    let (code, out, err) = finish(command).await;
    assert_eq!(code, 0, "{err}");
    let process = out.lines().find_map(|line| line.split_once("process ")?.1.split(',').next()?.parse().ok());
    let ready: Value = serde_json::from_str(out.lines().last().unwrap()).unwrap();
    (process.unwrap(), u16::try_from(ready["targets"][0]["port"].as_u64().unwrap()).unwrap())
}

async fn psql(port: u16) -> String {
    let mut psql = Command::new("psql");
    psql.args(["-X", "-A", "-t", "-w", "-h", "localhost", "-U", "x", "-p", &port.to_string(), "-c", "select 1"]);
    finish(psql).await.1
}

#[tokio::test]
async fn down_ends_what_would_wake_again() {
    let world = World::start().await;
    for asleep in [false, true] {
        let (process, port) = detached(&world).await;
        assert_eq!(psql(port).await, "1");
        if asleep {
            // Nothing runs, and the next client would start a task.
            let task = world.sandbox.tasks().iter().find(|(_, status)| *status != "STOPPED").unwrap().0.clone();
            world.sandbox.stop_directly(&task);
            let stopped = async {
                while running(&world) > 0 {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            };
            tokio::time::timeout(PATIENCE, stopped).await.expect("the task goes on");
        }
        let (code, out, err) = finish(bastion(&world, "alice", &["down", "demo", "--json"])).await;
        assert_eq!(code, 0, "{err}");
        let down: Value = serde_json::from_str(out.lines().last().unwrap()).unwrap();
        assert_eq!(down["ended"], serde_json::json!([process]), "{down}");
        assert!(TcpStream::connect(("127.0.0.1", port)).await.is_err(), "the port is open, asleep: {asleep}");
        assert_eq!(running(&world), 0);
    }
    let (code, _, err) = finish(bastion(&world, "alice", &["down", "demo"])).await;
    assert!(code == 0 && err.contains("you have no running bastion for demo"), "{err}");
    world.stop().await;
}

#[tokio::test]
async fn down_ends_other_terminals_but_not_other_levels_and_not_other_people() {
    let world = World::start().await;
    let woken = up_with(&world, &["--wake"]).await;
    // Somebody else at this machine has a folder of their own; what is in it is not alice's.
    let (code, _, err) = finish(bastion(&world, "bob", &["down", "demo"])).await;
    assert_eq!((code, running(&world)), (0, 1), "{err}");
    let (code, _, err) = finish(bastion(&world, "alice", &["down", "demo", "--access", "write"])).await;
    assert_eq!((code, running(&world)), (0, 1), "{err}");
    assert_eq!(woken.psql("orders", "select 1").await.1, "1");
    let (code, _, err) = finish(bastion(&world, "alice", &["down", "demo"])).await;
    assert_eq!((code, running(&world)), (0, 0), "{err}");
    let (code, said) = woken.ended().await;
    assert_eq!(code, Some(0), "{said}");
    world.stop().await;
}

#[tokio::test]
async fn down_on_another_machine_is_heard_too() {
    let world = World::start().await;
    let up = up_with(&world, &["--wake"]).await;
    let mut down = bastion(&world, "alice", &["down", "demo"]);
    let elsewhere = world.folder.path().join("elsewhere");
    std::fs::create_dir(&elsewhere).unwrap();
    let (code, _, err) = finish({
        down.env("XDG_STATE_HOME", &elsewhere);
        down
    })
    .await;
    assert_eq!(code, 0, "{err}");
    let (code, said) = up.ended().await;
    assert!(code == Some(1) && said.contains("has stopped: bastion down"), "{code:?} {said}");
    assert_eq!(running(&world), 0);
    world.stop().await;
}

#[tokio::test]
async fn the_record_of_a_killed_process_is_in_nobodys_way() {
    let world = World::start().await;
    let mut up = up(&world).await;
    send(&up.child, Signal::KILL);
    tokio::time::timeout(PATIENCE, up.child.wait()).await.unwrap().unwrap();
    let (code, out, err) = finish(bastion(&world, "alice", &["down", "demo", "--json"])).await;
    assert_eq!((code, running(&world)), (0, 0), "{err}");
    let down: Value = serde_json::from_str(out.lines().last().unwrap()).unwrap();
    assert_eq!(down["ended"], serde_json::json!([]), "{down}");
    let left = std::fs::read_dir(world.folder.path().join(".local/state/bastion")).unwrap();
    assert_eq!(left.count(), 0);
    world.stop().await;
}
