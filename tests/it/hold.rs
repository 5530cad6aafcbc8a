//! What an open tunnel tells of what went through it: events for machines, lines for people.

use std::process::Stdio;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Command;

use crate::support::{PATIENCE, World, finish};
use crate::up::{bastion, ports, up_with};

const LONG: &str = "select repeat('bastion', 10000)";

#[tokio::test]
async fn what_went_through_is_told_while_it_does_and_at_the_end() {
    let world = World::start().await;
    let mut up = up_with(&world, &["--stats"]).await;
    let lanes = up.event(|event| event["event"] == "lanes" && event["open"] == 4).await;
    assert_eq!(lanes, json!({"event": "lanes", "open": 4, "wanted": 4, "plain": false, "problem": null}));

    // A second terminal of the same person, who reads.
    let mut connect = bastion(&world, "alice", &["connect", "demo", "--stats"]);
    connect.args(ports()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut connect = connect.spawn().unwrap();
    let mut cards = BufReader::new(connect.stdout.take().unwrap()).lines();
    let mut said = BufReader::new(connect.stderr.take().unwrap()).lines();
    let port = async {
        while let Some(line) = cards.next_line().await.unwrap() {
            if let Some((_, port)) = line.split_once("localhost:") {
                return port.to_owned();
            }
        }
        panic!("it ended");
    };
    let port = tokio::time::timeout(2 * PATIENCE, port).await.expect("it has no card");
    let mut psql = Command::new("psql");
    psql.args(["-X", "-A", "-t", "-w", "-h", "localhost", "-U", "x", "-p", &port, "-c", LONG]);
    let (theirs, (_, out, err)) = tokio::join!(finish(psql), up.psql("orders", LONG));
    assert_eq!((theirs.1.len(), out.len()), (70_000, 70_000), "{}{err}", theirs.2);

    let stats = up.event(|event| event["event"] == "stats" && event["bytes_down"].as_u64() >= Some(70_000)).await;
    assert_eq!((&stats["seconds"], &stats["lanes"]), (&json!(5), &json!(4)), "{stats}");
    let number = |event: &Value, name: &str| event[name].as_u64().unwrap_or_else(|| panic!("no {name} in {event}"));
    assert!(number(&stats, "bytes_up") > 0 && number(&stats, "connections") <= 1, "{stats}");
    let mut line_with = async |part: &str| {
        let line = async {
            loop {
                let line = said.next_line().await.unwrap().unwrap_or_else(|| panic!("no line with {part:?}"));
                if line.contains(part) {
                    return line;
                }
            }
        };
        tokio::time::timeout(2 * PATIENCE, line).await.unwrap_or_else(|_| panic!("no line with {part:?}"))
    };
    let line = line_with("/s down, ").await;
    for part in ["KiB/s down, ", "B/s up, ", " % saved by compression · 4 lanes · ", " connections"] {
        assert!(line.contains(part), "{part:?} is not in {line}");
    }
    let pid = rustix::process::Pid::from_raw(i32::try_from(connect.id().unwrap()).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let line = line_with("closed: ").await;
    for part in ["B up, ", "KiB down, ", "/s on average, ", " % saved by compression, 0 reconnects"] {
        assert!(line.contains(part), "{part:?} is not in {line}");
    }
    assert!(connect.wait().await.unwrap().success());

    let (code, events) = up.end().await;
    assert_eq!(code, Some(0));
    let closed = events.iter().find(|event| event["event"] == "closed").unwrap_or_else(|| panic!("{events:?}"));
    let (up, down) = (number(closed, "bytes_up"), number(closed, "bytes_down"));
    assert!(down >= 70_000 && number(closed, "packed_down") < down / 2 && number(closed, "packed_up") > 0, "{closed}");
    assert!((1..=up + down).contains(&number(closed, "bytes_per_second")), "{closed}");
    assert_eq!(number(closed, "reconnects"), 0, "{closed}");
    assert!(closed["resent"].is_u64(), "{closed}");
    assert!(number(closed, "round_trip_ms") < 10_000, "{closed}");
    world.stop().await;
}
