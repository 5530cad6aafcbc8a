//! Ports on the laptop: who gets them, and what happens when there is no room for another connection.

use std::process::Stdio;
use std::time::Duration;

use rustix::process::Signal;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;

use crate::support::{BASTION, PATIENCE, World, finish};
use crate::up::{Up, bastion, ports, running};
use crate::ways_out::send;

#[tokio::test]
async fn a_taken_port_that_was_asked_for_is_an_error_that_says_who_has_it() {
    let world = World::start().await;
    for address in ["127.0.0.1:0", "0.0.0.0:0", "[::1]:0"] {
        let Ok(taken) = TcpListener::bind(address).await else { continue };
        let port = taken.local_addr().unwrap().port();
        let wish = format!("orders={port}");
        let (code, out, err) = finish(bastion(&world, "alice", &["up", "demo", "--local-port", &wish])).await;
        assert_eq!((code, out.as_str()), (1, ""), "{address}: {err}");
        let me = format!("(process {})", std::process::id());
        for part in [&format!("local port {port} for orders is taken by "), &me, "--local-port orders=PORT"] {
            assert!(err.contains(part), "{address}: {part:?} is not in {err}");
        }
        // What was started for it is not left behind.
        assert_eq!(running(&world), 0, "{address}");
    }
    world.stop().await;
}

#[tokio::test]
async fn a_usual_port_that_is_taken_gives_the_next_one_with_a_notice() {
    let world = World::start().await;
    // Whoever has it: a test beside this one, or this one.
    // A test beside this one may have it, and would give it back too early.
    let taken = async {
        loop {
            match TcpListener::bind("127.0.0.1:15432").await {
                Ok(taken) => return taken,
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    };
    let _taken = tokio::time::timeout(2 * PATIENCE, taken).await.unwrap();
    let mut up = Up::start(&world, &[]).await;
    assert!(up.port("orders") > 15_432);
    let warned = |event: &serde_json::Value| {
        event["message"].as_str().is_some_and(|said| said.contains("port 15432 is taken") && said.contains(" instead"))
    };
    if !up.events.iter().any(warned) {
        up.event(warned).await;
    }
    assert_eq!(up.psql("orders", "select 1").await.0, 0);
    assert_eq!(up.end().await.0, Some(0));
    world.stop().await;
}

#[tokio::test]
async fn at_the_limit_of_open_files_one_line_says_so_and_nobody_hangs() {
    let world = World::start().await;
    let ports = ports();
    let mut command = Command::new("sh");
    // The soft limit alone would be raised.
    command.args(["-c", "ulimit -n 64; exec \"$0\" \"$@\"", BASTION, "up", "demo", "--json"]).args(&ports).env_clear();
    command.current_dir(world.folder.path()).env("HOME", world.folder.path());
    command.envs(world.sandbox.variables("alice")).kill_on_drop(true);
    let mut up = Up::of(command).await;
    let address = ("127.0.0.1", up.port("orders"));
    let mut clients = Vec::new();
    for _ in 0..100 {
        clients.push(TcpStream::connect(address).await.unwrap());
    }
    let told = up.event(|event| event["event"] == "warning").await;
    let said = told["message"].as_str().unwrap();
    for part in ["new connections are closed: this process may have 64 files and sockets open", "ulimit -Hn"] {
        assert!(said.contains(part), "{part:?} is not in {said}");
    }
    // Each one is served or closed: nobody waits for nothing. PostgreSQL's SSLRequest is answered with one letter.
    let mut closed = 0;
    for client in &mut clients {
        let answered = async {
            client.write_all(&[0, 0, 0, 8, 4, 210, 22, 47]).await?;
            client.read(&mut [0; 1]).await
        };
        match tokio::time::timeout(PATIENCE, answered).await.expect("a client hangs") {
            Ok(1) => {}
            Ok(_) | Err(_) => closed += 1,
        }
    }
    assert!((40..100).contains(&closed), "{closed} of 100 clients were closed");
    drop(clients);
    // Theirs are closed one after the other.
    let served = async { while up.psql("orders", "select 1").await.0 != 0 {} };
    tokio::time::timeout(PATIENCE, served).await.expect("nobody is served any more");
    let (code, events) = up.end().await;
    assert_eq!(code, Some(0));
    let limits =
        events.iter().filter(|event| event["message"].as_str().is_some_and(|said| said.contains("files and sockets")));
    assert_eq!(limits.count(), 0, "it is said twice");
    world.stop().await;
}

#[tokio::test]
async fn the_soft_limit_of_open_files_is_raised() {
    let world = World::start().await;
    let ports = ports();
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -S -n 64; exec \"$0\" \"$@\"", BASTION, "up", "demo", "--json"]).args(&ports);
    command.env_clear().current_dir(world.folder.path()).env("HOME", world.folder.path());
    command.envs(world.sandbox.variables("alice")).stderr(Stdio::piped()).kill_on_drop(true);
    let up = Up::of(command).await;
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", up.child.id().unwrap())).unwrap();
    let limit = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    let values: Vec<&str> = limit.split_whitespace().skip(3).take(2).collect();
    assert!(values[0] == values[1] && values[0] != "64", "{limit}");
    send(&up.child, Signal::TERM);
    assert_eq!(up.ended().await.0, Some(0));
    world.stop().await;
}
