//! The row of the table that needs a Vault: the database user of a session ends in the midst of it.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::time::Duration;

use bastion_sandbox::Faults;
use bastion_sandbox::mariadb::MariaDb;
use bastion_sandbox::postgres::Flaws;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::Hears::Error;
use super::{LANES, TARGETS, assert_hears, begin, packet, startup, ups, warned};
use crate::support::{PATIENCE, World, finish, logged, sandbox_program};
use crate::terminal::{Terminal, mariadb, psql};
use crate::up::Up;
use crate::vault::{Lives, wait_until_gone, wait_until_mariadb_has_none, with_mariadb};
use crate::vault_caller::people_in;

/// Long enough for everybody to log in, short enough to be waited for.
const SHORT: Lives = Lives { lease: 14, lease_max: 16, token: 600 };

/// What psql and mariadb show.
const TOLD: [&str; 2] = [
    "FATAL:  terminating connection due to administrator command\nDETAIL:  bastion: this connection is closed because",
    "ERROR 1053 (08S01)",
];

/// A terminal of each engine at this launcher.
fn terminal(up: &Up, engine: usize) -> Terminal {
    match engine {
        0 => Terminal::psql("127.0.0.1", up.port("orders")),
        _ => Terminal::mariadb("127.0.0.1", up.port("events")),
    }
}

/// One message of PostgreSQL, which is a notice.
async fn notice(client: &mut TcpStream) {
    let mut head = [0; 5];
    client.read_exact(&mut head).await.unwrap();
    assert_eq!(head[0], b'N');
    let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize - 4;
    client.read_exact(&mut vec![0; length]).await.unwrap();
}

/// The numbers of the connections of such records.
fn conns(world: &World, task: &str, wanted: impl Fn(&Value) -> bool) -> BTreeSet<u64> {
    let log = world.sandbox.task_log(task);
    let records = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    records.filter(wanted).filter_map(|record| record["conn_id"].as_u64()).collect()
}

/// Waits until these have ended with their lease.
async fn all_ended(world: &World, task: &str, open: &BTreeSet<u64>) {
    while !conns(world, task, |record| record["ended_by"] == "lease").is_superset(open) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A client that asks something and leaves; what it says, and what it says is wrong.
async fn ask_and_leave(up: &Up, engine: usize) -> (String, String) {
    let mut client = match engine {
        0 => psql("127.0.0.1", up.port("orders")),
        _ => mariadb("127.0.0.1", up.port("events")),
    };
    client.args([["-c", "select 1"], ["-e", "select 1"]][engine]);
    let (_, said, error) = finish(client).await;
    (said, error)
}

/// One client after the other, until it is `over`.
async fn comes_and_goes(up: &Up, engine: usize, over: &Cell<bool>) {
    while !over.get() {
        let (said, error) = ask_and_leave(up, engine).await;
        assert!(said == "1" || error.contains(TOLD[engine]), "{}: {said}\n{error}", TARGETS[engine]);
    }
}

async fn session(up: &Up, engine: usize) -> TcpStream {
    let mut client = TcpStream::connect(("127.0.0.1", up.port(TARGETS[engine]))).await.unwrap();
    begin(&mut client, engine).await;
    client
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_a_database_user_is_told_to_all_who_use_it_over_lanes_and_without() {
    let folder = World::folder();
    let events = MariaDb::start(folder.path(), &sandbox_program(), Flaws::default()).await.unwrap();
    let (world, vault) = people_in(folder, SHORT, Some(&events), |_| ()).await;
    with_mariadb(&vault, &events, SHORT).await;
    let targets = ["orders", "ledger", "reports", "token", "events"].map(str::to_owned);
    let ups = ups(&world, &targets, &[]).await;
    let task = ups[0].ready["task"].as_str().unwrap().to_owned();
    let user = ["select current_user;", "select substring_index(user(), '@', 1);"];
    let (mut idle, mut busy, mut open, mut changing) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for (lanes, up) in LANES.into_iter().zip(&ups) {
        for engine in 0..2 {
            let row = |what: &str| format!("{lanes} lanes, {}: {what}", TARGETS[engine]);
            let (mut first, mut second) = (terminal(up, engine), terminal(up, engine));
            let (name, other) = tokio::join!(first.ask(user[engine]), second.ask(user[engine]));
            assert!(name.starts_with("v-") && name == other, "{name}, {other}");
            second.write(["select pg_sleep(60);", "select sleep(60);"][engine]).await;
            idle.push((engine, row("idle"), first));
            busy.push((engine, row("busy"), second));
            open.push((engine, row("raw"), session(up, engine).await));
        }
        changing.push((1, format!("{lanes} lanes, events: while the user changes"), session(up, 1).await));
    }
    logged(&world.sandbox, &task, "the database user will end").await;
    for (engine, _, client) in &mut open {
        if *engine == 0 {
            notice(client).await;
        }
    }
    // They have been asked for a proof, with packet 1, which they need not give within a few seconds.
    for (_, _, client) in &mut changing {
        let change = b"\x11anyone\0\0\0\x2d\0mysql_native_password\0";
        let head = [u8::try_from(change.len()).unwrap(), 0, 0, 0];
        client.write_all(&[&head[..], change].concat()).await.unwrap();
        assert_eq!(packet(client).await.0, 1);
    }
    open.append(&mut changing);
    let open_now = conns(&world, &task, |record| record["event"] == "connection_opened");
    assert_eq!(open_now.len(), idle.len() + busy.len() + open.len());
    // Who comes and goes meanwhile has no reason to wait.
    let over = Cell::new(false);
    let all_ended = async {
        let ended = tokio::time::timeout(PATIENCE, all_ended(&world, &task, &open_now)).await;
        ended.unwrap_or_else(|_| panic!("{}", world.sandbox.task_log(&task)));
        over.set(true);
    };
    let coming = ups.iter().flat_map(|up| [comes_and_goes(up, 0, &over), comes_and_goes(up, 1, &over)]);
    tokio::join!(all_ended, futures_util::future::join_all(coming));
    for (_, _, terminal) in &mut idle {
        terminal.write("select 'too late';").await;
    }
    for (engine, row, mut client) in open {
        let wanted = if engine == 0 { Error(b"57P01") } else { Error(&[0xff, 0x1d, 0x04]) };
        assert_hears(&mut client, wanted, &row).await;
    }
    for (engine, row, terminal) in idle.into_iter().chain(busy) {
        let said = tokio::time::timeout(PATIENCE, terminal.end()).await;
        let (_, said) = said.unwrap_or_else(|_| panic!("{row} is stuck:\n{}", world.sandbox.task_log(&task)));
        assert!(said.contains(TOLD[engine]) && said.matches("this connection is closed").count() == 1, "{row}: {said}");
    }
    // The next ones need another proof of who this is, which nobody can give now. One may be left of those who came at once
    // and shared the user that another one's proof had made; it is good for one more.
    world.sandbox.set_faults(Faults { sts_is_away: true, ..Faults::default() });
    tokio::join!(ask_and_leave(&ups[0], 0), ask_and_leave(&ups[0], 1));
    wait_until_mariadb_has_none(&events, "user like 'v-%'").await;
    wait_until_gone(&world, "v-").await;
    let mut greeted = Vec::new();
    for (lanes, up) in LANES.into_iter().zip(&ups) {
        for (engine, wanted) in [Error(b"08006"), Error(&[0xff, 0x86, 0x04])].into_iter().enumerate() {
            let row = format!("{lanes} lanes, {}: launcher, refused", TARGETS[engine]);
            let mut client = TcpStream::connect(("127.0.0.1", up.port(TARGETS[engine]))).await.unwrap();
            if engine == 0 {
                client.write_all(&startup(&[])).await.unwrap();
            } else if is_greeted(&client).await {
                greeted.push(lanes);
                continue;
            }
            let heard = assert_hears(&mut client, wanted, &row).await;
            let text = String::from_utf8_lossy(&heard);
            assert!(text.contains("no connection: you could not prove again who you are: "), "{row}: {text}");
        }
    }
    for (lanes, up) in LANES.into_iter().zip(ups) {
        let (code, told) = up.end().await;
        assert_eq!(code, Some(0));
        for target in ["orders", "events"] {
            if target == "events" && greeted.contains(&lanes) {
                continue;
            }
            let told = warned(&told, target);
            let refused =
                told.iter().filter(|told| told.starts_with("you could not prove again who you are: ")).count();
            // The one that came before the others was refused, or not.
            let most = if lanes == "0" { 2 } else { 1 };
            assert!(told.len() == refused && (1..=most).contains(&refused), "{lanes} lanes, {target}: {told:?}");
        }
    }
    drop(vault);
    events.stop().await;
    world.stop().await;
}

/// Behind many connections that came to no login, as some of those here, a client is greeted before anybody looks for its user.
async fn is_greeted(client: &TcpStream) -> bool {
    let mut start = [0; 5];
    let peeked = async {
        while client.peek(&mut start).await.unwrap() < 5 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, peeked).await.expect("nothing comes");
    start[4] == 0x0a
}
