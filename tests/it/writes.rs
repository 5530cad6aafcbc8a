//! Places that take no writes: what is talk is dropped, what is a result is not lost in silence, and nothing ends the program.

use std::fs::File;
use std::process::Stdio;

use bastion_sandbox::postgres::HOST;
use rustix::process::Signal;
use serde_json::json;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::process::Command;

use crate::support::{BASTION, PATIENCE, World, finish};
use crate::up::{Up, bastion, ports, running};
use crate::ways_out::send;

fn full() -> File {
    File::options().write(true).open("/dev/full").unwrap()
}

#[tokio::test]
async fn a_result_that_cannot_be_written_is_a_failure() {
    let world = World::start().await;
    let relay = world.folder.path().join("relay.json");
    let target = json!({"engine": "tcp", "host": HOST, "port": 1, "credential": "client"});
    let config = json!({"env": "demo", "access": "read", "region": "ap-northeast-1", "target": {"t": target}});
    std::fs::write(&relay, config.to_string()).unwrap();
    let check = ["relay", "--check", "--config", relay.to_str().unwrap()];
    let cases: [&[&str]; 6] =
        [&["--help"], &["up", "--help"], &["--version"], &check, &["grant-sql", "demo"], &["down", "demo", "--json"]];
    for arguments in cases {
        let mut command = bastion(&world, "alice", arguments);
        let mut child = command.stdout(full()).stderr(Stdio::piped()).spawn().unwrap();
        let mut said = String::new();
        child.stderr.take().unwrap().read_to_string(&mut said).await.unwrap();
        let status = tokio::time::timeout(PATIENCE, child.wait()).await.unwrap().unwrap();
        assert_eq!(status.code(), Some(1), "{arguments:?}: {said}");
        assert!(said.contains("stdout cannot be written, so results are lost: No space"), "{arguments:?}: {said}");
        // Neither this sentence nor the result.
        let mut command = bastion(&world, "alice", arguments);
        let status = command.stdout(full()).stderr(full()).spawn().unwrap().wait().await.unwrap();
        assert_eq!(status.code(), Some(1), "{arguments:?}");
        // A reader that goes away before the first byte has had enough.
        let mut command = bastion(&world, "alice", arguments);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        drop(child.stdout.take());
        assert_eq!(child.wait().await.unwrap().code(), Some(0), "{arguments:?}");
    }
    world.stop().await;
}

#[tokio::test]
async fn a_tunnel_goes_on_when_nobody_can_be_told() {
    let world = World::start().await;
    // Talk that goes nowhere changes nothing, the exit code neither.
    for stderr in ["full", "gone"] {
        let mut command = bastion(&world, "alice", &["up", "demo", "--json", "--access", "read"]);
        command.args(ports()).env("BASTION_LOG", "debug");
        command.stdout(Stdio::piped()).stderr(if stderr == "full" { full().into() } else { Stdio::piped() });
        let up = Up::of_with(command, |child| drop(child.stderr.take())).await;
        assert_eq!(up.psql("orders", "select 1").await.1, "1", "{stderr}");
        assert_eq!((up.end().await.0, running(&world)), (Some(0), 0), "{stderr}");
    }

    // `bastion up 2>&1 | head -3`
    let (reader, writer) = std::io::pipe().unwrap();
    let ports = ports();
    let port = ports[1].split_once('=').unwrap().1.parse().unwrap();
    let mut command = bastion(&world, "alice", &["up", "demo"]);
    command.args(&ports).stdout(writer.try_clone().unwrap()).stderr(writer);
    let mut child = command.spawn().unwrap();
    drop(command);
    let reader = tokio::net::unix::pipe::Receiver::from_owned_fd(reader.into()).unwrap();
    let mut lines = BufReader::new(reader).lines();
    for _ in 0..3 {
        tokio::time::timeout(PATIENCE, lines.next_line()).await.unwrap().unwrap().unwrap();
    }
    drop(lines);
    serves(port).await;
    send(&child, Signal::INT);
    let status = tokio::time::timeout(PATIENCE, child.wait()).await.unwrap().unwrap();
    assert_eq!((status.code(), running(&world)), (Some(0), 0));

    // The cards are lost, so it is no success; the ports are open all the same until somebody ends it.
    let mut command = bastion(&world, "alice", &["up", "demo"]);
    let mut child = command.args(&ports).stdout(full()).stderr(Stdio::piped()).spawn().unwrap();
    serves(port).await;
    send(&child, Signal::INT);
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).await.unwrap();
    let status = tokio::time::timeout(PATIENCE, child.wait()).await.unwrap().unwrap();
    assert_eq!((status.code(), running(&world)), (Some(1), 0), "{said}");
    assert_eq!(said.matches("stdout cannot be written").count(), 1, "{said}");
    world.stop().await;
}

/// Waits until a client comes through a port.
async fn serves(port: u16) {
    let through = async {
        loop {
            let mut psql = Command::new("psql");
            psql.args([
                "-X",
                "-A",
                "-t",
                "-w",
                "-h",
                "localhost",
                "-U",
                "x",
                "-p",
                &port.to_string(),
                "-c",
                "select 1",
            ]);
            if finish(psql).await.1 == "1" {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(2 * PATIENCE, through).await.expect("no client comes through");
}

#[tokio::test]
async fn a_relay_whose_log_cannot_be_written_serves_on() {
    let target = json!({"engine": "tcp", "host": HOST, "port": 1, "credential": "client", "relay_port": 17_711});
    let config = json!({
        "env": "demo", "access": "read", "region": "ap-northeast-1", "identity": "optional", "target": {"t": target}
    });
    let mut relay = Command::new(BASTION);
    relay.arg("relay").env_clear().env("BASTION_CONFIG", config.to_string()).env("BASTION_LOG", "debug");
    relay.env("BASTION_LISTEN", "127.0.77.7").stdin(Stdio::null()).stderr(full()).kill_on_drop(true);
    let mut child = relay.spawn().unwrap();
    let healthy = async {
        let address = std::net::Ipv4Addr::new(127, 0, 77, 7);
        while tokio::net::TcpStream::connect((address, 7070)).await.is_err() {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        crate::support::http(address, "GET /healthz HTTP/1.1\r\nHost: relay\r\nConnection: close\r\n\r\n").await.0
    };
    assert_eq!(tokio::time::timeout(PATIENCE, healthy).await.unwrap(), 200);
    send(&child, Signal::HUP);
    let status = tokio::time::timeout(PATIENCE, child.wait()).await.unwrap().unwrap();
    assert_eq!(status.code(), Some(0));
}
