//! The rows of the table whose end a test can bring about at once, each for every engine and number of lanes.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::Hears::{End, Error, Nothing, Reset};
use super::{
    Ends, Hears, How, LANES, TARGETS, assert_hears, assert_turned_away, client, client_of, opening, packet, rest, said,
    startup, warned,
};
use crate::support::logged;
use crate::up::Up;

/// Numbers and SQLSTATEs of a database that cannot be reached.
const UNREACHABLE: [Hears; 3] = [Error(b"08001"), Error(&[0xff, 0x95, 0x05]), Reset];
const FULL: [Hears; 3] = [Error(b"53300"), Error(&[0xff, 0x10, 0x04]), Reset];
const STOPPED: [Hears; 3] = [Error(b"57P01"), Error(&[0xff, 0x1d, 0x04]), Reset];

/// `select 1` of both databases.
const STATEMENT: [&[u8]; 2] = [b"Q\0\0\0\x0dselect 1\0", b"\x09\0\0\0\x03select 1"];

fn row(lanes: &str, target: &str, what: &str) -> String {
    format!("{lanes} lanes, {target}: {what}")
}

/// Sessions that begin and end.
async fn sessions(ends: &Ends, lanes: &str, up: &Up) {
    for (what, hears, record) in [
        ("database, clean", [Some(End); 3], ("upstream", false)),
        ("database, reset", [Some(Reset); 3], ("upstream", true)),
        // Without TLS these are bytes as others.
        ("database, cut", [Some(Reset), Some(Reset), None], ("upstream", true)),
        ("client, clean", [Some(Nothing); 3], ("client", false)),
        ("client, reset", [Some(Nothing); 3], ("client", true)),
    ] {
        for (engine, hears) in hears.into_iter().enumerate() {
            let Some(hears) = hears else { continue };
            let row = row(lanes, TARGETS[engine], what);
            let mut client = client(up, engine).await;
            let database = |how| {
                let _before = ends.lines[engine].end.send_replace(Some(how));
            };
            match what {
                "database, clean" => database(How::Clean),
                "database, reset" => database(How::Reset),
                "database, cut" => database(How::Garbled),
                "client, clean" => client.shutdown().await.unwrap(),
                _ => client.set_zero_linger().unwrap(),
            }
            if hears != Nothing {
                assert_hears(&mut client, hears, &row).await;
            }
            drop(client);
            let found = ends.record(TARGETS[engine]).await;
            assert_eq!(said(&found), record, "{row}: {found}");
        }
    }
}

/// Connections that nobody takes, and what only the relay refuses.
async fn refusals(ends: &Ends, lanes: &str, up: &Up) {
    for (engine, target) in TARGETS.into_iter().enumerate() {
        let row = row(lanes, target, "database, refused");
        assert_turned_away(up, "dead-", engine, UNREACHABLE[engine], &row).await;
        let found = ends.record(&format!("dead-{target}")).await;
        assert_eq!(said(&found), ("dial", true), "{row}: {found}");

        let row = self::row(lanes, target, "relay, refused");
        let narrow = format!("narrow-{target}");
        let only = client_of(up, "narrow-", engine).await;
        let heard = assert_turned_away(up, "narrow-", engine, FULL[engine], &row).await;
        let text = String::from_utf8_lossy(&heard);
        // Drivers compare the server's own words.
        assert!(
            text.contains(["sorry, too many clients already", "Too many connections. bastion: ", ""][engine]),
            "{text}"
        );
        let found = ends.record(&narrow).await;
        assert_eq!(said(&found), ("full", true), "{row}: {found}");
        drop(only);
        ends.record(&narrow).await;
    }
}

/// A statement with its answer.
async fn ask(client: &mut TcpStream, engine: usize) {
    client.write_all(STATEMENT[engine]).await.unwrap();
    if engine == 0 {
        let mut answer = Vec::new();
        while !answer.ends_with(b"Z\0\0\0\x05I") {
            assert!(client.read_buf(&mut answer).await.unwrap() > 0, "{}", String::from_utf8_lossy(&answer));
        }
        return;
    }
    // Behind the column, and behind the row.
    let mut ends = 0;
    while ends < 2 {
        let (_, payload) = packet(client).await;
        assert!(payload[0] != 0xff, "{}", String::from_utf8_lossy(&payload));
        ends += usize::from(payload[0] == 0xfe);
    }
}

/// The databases have no room themselves, which they say.
async fn full_databases(ends: &Ends, ups: &[Up; 3]) {
    ends.world.database.sql("postgres", "create database crowded connection limit 0").await.unwrap();
    ends.events.sql("mysql", "set global max_connections = 10").await.unwrap();
    let mut held = Vec::new();
    loop {
        let mut socket = TcpStream::connect(("127.0.0.1", ends.events.port)).await.unwrap();
        if packet(&mut socket).await.1[0] == 0xff {
            break;
        }
        held.push(socket);
    }
    for (lanes, up) in LANES.into_iter().zip(ups) {
        for (engine, (code, words)) in [
            (&b"C53300"[..], "too many connections for database \"crowded\""),
            (&[0xff, 0x10, 0x04], "Too many connections. bastion: "),
        ]
        .into_iter()
        .enumerate()
        {
            let row = row(lanes, TARGETS[engine], "database, refused by itself");
            let mut client = TcpStream::connect(("127.0.0.1", up.port(TARGETS[engine]))).await.unwrap();
            if engine == 0 {
                client.write_all(&startup(&[("database", "crowded")])).await.unwrap();
            }
            let (heard, ended) = rest(&mut client, &row).await;
            let text = String::from_utf8_lossy(&heard);
            let said_once = heard.windows(code.len()).filter(|part| *part == code).count() == 1;
            assert!(ended.is_ok() && said_once && text.contains(words), "{row}: {text}");
            // What is said behind the proof of who this is passes as it is.
            assert_eq!(text.contains("bastion: "), engine == 1, "{row}: {text}");
            let found = ends.record(TARGETS[engine]).await;
            assert_eq!(said(&found), ("upstream", true), "{row}: {found}");
        }
    }
    drop(held);
    ends.events.sql("mysql", "set global max_connections = 3000").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn every_end_is_told_as_what_it_is_over_lanes_and_without() {
    let ends = Ends::start().await;
    let ups = ends.ups(&[]).await;
    // Those that time out do so meanwhile.
    let mut silent = Vec::new();
    for (lanes, up) in LANES.into_iter().zip(&ups) {
        for (engine, target) in TARGETS.into_iter().enumerate() {
            let client = opening(up, "silent-", engine).await.unwrap();
            silent.push((engine, row(lanes, target, "database, timed out"), client));
        }
    }
    for (lanes, up) in LANES.into_iter().zip(&ups) {
        sessions(&ends, lanes, up).await;
        refusals(&ends, lanes, up).await;
    }
    full_databases(&ends, &ups).await;
    for (engine, row, mut client) in silent {
        let heard = assert_hears(&mut client, UNREACHABLE[engine], &row).await;
        assert!(engine == 2 || String::from_utf8_lossy(&heard).contains("within 12 s"), "{row}: {heard:?}");
        let found = ends.record(&format!("silent-{}", TARGETS[engine])).await;
        assert_eq!(said(&found), ("dial", true), "{row}: {found}");
    }
    // What is open when the log breaks, and when the launcher leaves.
    let (mut asking, mut open) = (Vec::new(), Vec::new());
    for up in &ups {
        for engine in 0..3 {
            open.push(client(up, engine).await);
            if engine < 2 {
                asking.push(client(up, engine).await);
            }
        }
    }
    // The first statement that is lost is one that nobody hears about; the log of the relay itself does.
    for (number, client) in asking.iter_mut().enumerate() {
        ask(client, number % 2).await;
    }
    let mut first = client(&ups[0], 0).await;
    ends.world.sandbox.end_log(&ends.task());
    ask(&mut first, 0).await;
    logged(&ends.world.sandbox, &ends.task(), "records are lost until it can").await;
    for (number, mut client) in asking.into_iter().enumerate() {
        let (lanes, engine) = (LANES[number / 2], number % 2);
        let row = row(lanes, TARGETS[engine], "audit, cut");
        client.write_all(STATEMENT[engine]).await.unwrap();
        let heard = assert_hears(&mut client, UNREACHABLE[engine], &row).await;
        assert!(String::from_utf8_lossy(&heard).contains("the audit log cannot be written"), "{row}: {heard:?}");
    }
    drop(first);
    for ((lanes, up), clients) in LANES.into_iter().zip(ups).zip(open.chunks_mut(3)) {
        let (code, events) = up.end().await;
        assert_eq!(code, Some(0));
        let hears = [Error(b"08006"), Error(&[0xff, 0x86, 0x04]), Reset];
        for ((target, client), hears) in TARGETS.into_iter().zip(clients).zip(hears) {
            assert_hears(client, hears, &row(lanes, target, "launcher, cut")).await;
        }
        for target in TARGETS {
            assert_eq!(warned(&events, target), [""; 0], "{lanes} lanes");
            for (kind, start) in [
                ("dead-", "cannot reach target dead-bytes at 127.0.0.1:"),
                ("silent-", "cannot reach target silent-bytes at 127.0.0.1:"),
                ("narrow-", "this relay serves 1 connections to target narrow-bytes at once"),
            ] {
                let told = warned(&events, &format!("{kind}{target}"));
                match target {
                    "bytes" => assert!(told.len() == 1 && told[0].starts_with(start), "{lanes} lanes: {told:?}"),
                    _ => assert_eq!(told, [""; 0], "{lanes} lanes, {kind}{target}"),
                }
            }
        }
    }
    ends.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_stops_says_so_to_every_engine() {
    let ends = Ends::start().await;
    let ups = ends.ups(&[]).await;
    let mut clients = Vec::new();
    for (lanes, up) in LANES.into_iter().zip(&ups) {
        for (engine, target) in TARGETS.into_iter().enumerate() {
            clients.push((engine, row(lanes, target, "task, cut"), client(up, engine).await));
        }
        // One that is just being let in again: it has been asked for a proof, with packet 1.
        let mut changing = client(up, 1).await;
        let change = b"\x11anyone\0\0\0\x2d\0mysql_native_password\0";
        let head = [u8::try_from(change.len()).unwrap(), 0, 0, 0];
        changing.write_all(&[&head[..], change].concat()).await.unwrap();
        assert_eq!(packet(&mut changing).await.0, 1);
        clients.push((3, row(lanes, "events", "task, cut while the user changes"), changing));
    }
    let task = ends.task();
    let pid = ends.world.sandbox.task_pid(&task).and_then(|pid| i32::try_from(pid).ok()).unwrap();
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    // The second signal ends the grace of the first.
    for text in ["draining", "\"ended_by\":\"shutdown\""] {
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        logged(&ends.world.sandbox, &task, text).await;
    }
    for (engine, row, mut client) in clients {
        let heard = assert_hears(&mut client, STOPPED[if engine == 3 { 1 } else { engine }], &row).await;
        // The client's answer would have been packet 2.
        assert!(engine != 3 || heard[3] == 3, "{row}: {heard:?}");
    }
    for (engine, target) in TARGETS.into_iter().enumerate() {
        for _ in 0..if engine == 1 { 6 } else { 3 } {
            let found = ends.record(target).await;
            assert_eq!(said(&found), ("shutdown", false), "{found}");
        }
    }
    for up in ups {
        assert_eq!(up.ended().await.0, Some(1));
    }
    ends.stop().await;
}
