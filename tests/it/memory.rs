//! What somebody who was let in, or a Vault, can have a relay remember: with 128 MB for all of it, nothing of it ends the relay,
//! and everybody else is served.

use bastion_sandbox::mariadb::Flaws;
use bastion_sandbox::postgres::HOST;
use bastion_sandbox::{REGION, Sandbox};
use bastion_wire::lane::frame::{Frame, Segment};
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::relay_mysql;
use crate::support::{PATIENCE, Relay, World, target};
use crate::true_records::mysql::{CAPABILITIES, DEPRECATE_EOF, login, packet, read};

/// Of data, stacks and all that is allocated. The kernel gives the process no more, which ends programs that do not count.
const LIMIT: u64 = 128 << 20;

fn limit(sandbox: &Sandbox, task: &str) -> u32 {
    let pid = sandbox.task_pid(task).unwrap();
    let limit = Rlimit { current: Some(LIMIT), maximum: Some(LIMIT) };
    prlimit(Pid::from_raw(i32::try_from(pid).unwrap()), Resource::Data, limit).unwrap();
    pid
}

async fn is_served(relay: &Relay<'_>, after: &str) {
    let (code, out, err) = relay.psql(5432, &[], "select 'here'").await;
    assert_eq!((code, out.as_str()), (0, "here"), "after {after}: {err}\n{}", relay.log());
}

/// A lane of a new link.
async fn lane(relay: &Relay<'_>, secret: u8) -> TcpStream {
    let mut stream = TcpStream::connect((relay.address, 7070)).await.unwrap();
    let request = format!(
        "GET /v1/lane HTTP/1.1\r\nHost: relay\r\nConnection: Upgrade\r\nUpgrade: bastion-lane/1\r\nBastion-Link: {secret:032x}\r\n\
         Bastion-Lane: new\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    assert!(head.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&head));
    stream
}

/// Opens a link of `streams` streams, each with so many small pieces and none before them; why streams are reset.
async fn pieces_out_of_order(relay: &Relay<'_>, secret: u8, streams: u64, pieces: u64) -> Vec<String> {
    let (mut read, mut write) = lane(relay, secret).await.into_split();
    let sending = async {
        for stream in 1..=streams {
            let mut bytes = Vec::new();
            for piece in 0..pieces {
                let (fin, asks) = (false, false);
                Frame::Segment(Segment { stream, offset: 1 + 201 * piece, fin, asks, data: &[7; 200] })
                    .encode(&mut bytes);
            }
            write.write_all(&bytes).await.unwrap();
        }
        let mut end = Vec::new();
        Frame::Goodbye.encode(&mut end);
        write.write_all(&end).await.unwrap();
    };
    let mut answers = Vec::new();
    let reading = async { read.read_to_end(&mut answers).await };
    let ((), ended) = tokio::time::timeout(3 * PATIENCE, async { tokio::join!(sending, reading) }).await.unwrap();
    ended.unwrap();
    let (mut rest, mut reasons) = (answers.as_slice(), Vec::new());
    while let Some((frame, used)) = Frame::decode(rest).unwrap() {
        if let Frame::Reset { reason, .. } = frame {
            reasons.push(reason.to_owned());
        }
        rest = &rest[used..];
    }
    reasons
}

#[tokio::test]
async fn pieces_that_come_out_of_order_end_their_streams_and_nothing_else() {
    let world = World::start().await;
    let relay = world.relay(|_| ()).await;
    is_served(&relay, "the start").await;
    limit(&world.sandbox, &relay.id);
    // What the first link took is there for the second one.
    for secret in 1..=2 {
        let reasons = pieces_out_of_order(&relay, secret, 800, 600).await;
        // Some are not told any more at the end of the link.
        assert!((50..700).contains(&reasons.len()), "{} streams were reset", reasons.len());
        let why =
            "the memory for bytes that have come through the tunnel and wait for their reader is used up: 32768 KiB";
        assert!(reasons.iter().all(|reason| reason == why), "{reasons:?}");
        is_served(&relay, "pieces").await;
    }
    assert_eq!(relay.status(), "RUNNING");
    world.stop().await;
}

/// A Vault whose answers have no end.
async fn endless_vault() -> (String, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let mut serving = JoinSet::new();
    serving.spawn(async move {
        let mut conns = JoinSet::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            conns.spawn(async move {
                let _asked = stream.read(&mut [0; 4096]).await;
                let _said = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await;
                let blanks = vec![b' '; 1 << 20];
                while stream.write_all(&blanks).await.is_ok() {}
            });
        }
    });
    (address, serving)
}

#[tokio::test]
async fn a_vault_without_end_is_told_to_its_own_clients() {
    let world = World::start().await;
    let (address, _serving) = endless_vault().await;
    let relay = world
        .relay(|config| {
            let vault = |creds: &str| -> Value {
                json!({
                    "engine": "postgres", "host": HOST, "hostaddr": "127.0.0.1", "port": world.database.port, "database": "orders",
                    "credential": {"vault": {"address": address, "auth": "aws", "login": "task", "role": "read", "creds": creds,
                                             "server_id": "vault.example.com", "sts_region": REGION}}
                })
            };
            config["target"] = json!({"a": target(world.database.port, "db_read"), "b": vault("x/creds/a"), "c": vault("x/creds/b")});
        })
        .await;
    is_served(&relay, "the start").await;
    limit(&world.sandbox, &relay.id);
    for _ in 0..3 {
        let (one, other) = tokio::join!(relay.psql(5433, &[], "select 1"), relay.psql(5434, &[], "select 1"));
        for (code, _, err) in [one, other] {
            assert!(code == 2 && err.contains("its answer is longer than 64 KiB"), "{err}");
        }
        is_served(&relay, "Vault").await;
    }
    assert_eq!(relay.status(), "RUNNING");
    world.stop().await;
}

/// What a process has in memory, in bytes.
fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

#[tokio::test]
async fn statements_that_are_prepared_without_end_are_recorded_and_not_kept() {
    const CLIENTS: usize = 24;
    const STATEMENTS: usize = 100;
    let world = relay_mysql::World::start(Flaws::default(), |relay| relay["audit"] = json!("statements")).await;
    let pid = limit(&world.sandbox, world.task());
    let mut clients = JoinSet::new();
    for _ in 0..CLIENTS {
        let address = world.address;
        clients.spawn(async move {
            let mut stream = login(address, 3306, CAPABILITIES | DEPRECATE_EOF).await;
            // 144 MB of all of them together.
            let statement = format!("select 1 /* {} */", "x".repeat(60 << 10));
            for _ in 0..STATEMENTS {
                stream.write_all(&packet(0, &[b"\x16", statement.as_bytes()])).await.unwrap();
                let (_, payload) = read(&mut stream).await;
                assert_eq!(payload.first(), Some(&0), "{}", String::from_utf8_lossy(&payload));
                let _definition = read(&mut stream).await;
            }
            stream
        });
    }
    let all = async {
        let mut streams = Vec::new();
        while let Some(stream) = clients.join_next().await {
            streams.push(stream.unwrap());
        }
        streams
    };
    let streams = tokio::time::timeout(6 * PATIENCE, all).await.expect("every client has prepared its statements");
    assert_eq!(streams.len(), CLIENTS);
    let (code, out, err) = world.mariadb(3306, &[], "select 'here'").await;
    assert_eq!((code, out.as_str()), (0, "here"), "{err}");
    let resident = resident(pid);
    assert!(resident < LIMIT, "{} MB are in memory", resident >> 20);
    println!("{} MB are in memory", resident >> 20);
    drop(streams);
    // Its records are as many and as long as others, and take a minute to be held to the schema.
    world.sandbox.stop().await;
    world.database.stop().await;
    world.folder.close().unwrap();
}
