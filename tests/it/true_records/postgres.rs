//! PostgreSQL.

use std::collections::{BTreeMap, BTreeSet};

use bastion_sandbox::postgres::Postgres;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use super::{MESSAGES, Ours, Random, agree, wanted};
use crate::support::{PATIENCE, Relay, World};

fn message(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let body = parts.concat();
    let length = u32::try_from(body.len() + 4).unwrap();
    [&[tag][..], &length.to_be_bytes(), &body].concat()
}

fn name(random: &mut Random) -> Vec<u8> {
    // The last two are one for the server.
    let long = |end: &str| format!("{}{end}", "n".repeat(63));
    let name = match random.below(24) {
        0 => long("a"),
        1 => long("b"),
        2..=8 => "n1".to_owned(),
        9..=15 => "n2".to_owned(),
        _ => String::new(),
    };
    [name.as_bytes(), b"\0"].concat()
}

/// SQL that no other message has.
fn sql(random: &mut Random, number: usize, alone: bool) -> String {
    match random.below(if alone { 26 } else { 24 }) {
        0 => format!("select {number} / 0"),
        1 => format!("begin /* {number} */"),
        2 => format!("commit /* {number} */"),
        3 => format!("rollback /* {number} */"),
        4 => format!("savepoint a /* {number} */"),
        5 => format!("rollback to a /* {number} */"),
        6 => format!("prepare n{} as select {number}", 1 + 2 * random.below(2)),
        7 => format!("deallocate n1 /* {number} */"),
        8 => format!("deallocate all /* {number} */"),
        // What the protocol has prepared is not run in this way: a statement that deallocates itself crashes servers.
        9 => format!("execute n3 /* {number} */"),
        10 => format!("declare n2 cursor for select {number}"),
        11 => format!("close n2 /* {number} */"),
        12 => format!("do 'begin perform {number}; end'"),
        13 => format!("insert into t values ({number})"),
        24 => format!("copy t from stdin /* {number} */"),
        25 => format!("discard all /* {number} */"),
        _ => format!("select {number} from generate_series(1, 3)"),
    }
}

/// Messages that come together, some of them in the wrong order.
fn batch(random: &mut Random, number: usize) -> Vec<u8> {
    let mut out = Vec::new();
    match random.below(12) {
        0 => {
            let text = sql(random, number, true);
            let copies = text.starts_with("copy");
            out.extend(message(b'Q', &[text.as_bytes(), b"\0"]));
            if copies {
                out.extend(message(b'd', &[b"1\n"]));
                out.extend(if random.below(3) == 0 { message(b'f', &[b"no\0"]) } else { message(b'c', &[]) });
            }
        }
        1 => {
            let both = [sql(random, number, false), sql(random, number, false)].join("; ");
            out.extend(message(b'Q', &[both.as_bytes(), b"\0"]));
        }
        2 => {
            let text = sql(random, number, false);
            out.extend(message(b'P', &[&name(random), text.as_bytes(), b"\0\0\0"]));
        }
        3 => out.extend(message(b'C', &[if random.below(2) == 0 { b"S" } else { b"P" }, &name(random)])),
        4 => out.extend(message(b'E', &[&name(random), &[0; 4]])),
        5 => out.extend(message(b'D', &[if random.below(2) == 0 { b"S" } else { b"P" }, &name(random)])),
        _ => {
            let (statement, portal) = (name(random), name(random));
            if random.below(3) > 0 {
                let text = sql(random, number, false);
                out.extend(message(b'P', &[&statement, text.as_bytes(), b"\0\0\0"]));
            }
            out.extend(message(b'B', &[&portal, &statement, &[0; 6]]));
            let rows = u8::from(random.below(3) == 0);
            out.extend(message(b'E', &[&portal, &[0, 0, 0, rows]]));
        }
    }
    if random.below(3) > 0 {
        out.extend(message(b'S', &[]));
    }
    out
}

/// One connection: says so many messages, and waits now and then. How many were said, and what was heard last if it has ended
/// before.
async fn play(relay: &Relay<'_>, number: u64, first: usize) -> (usize, Option<String>) {
    let mut random = Random::of(number);
    let mut stream = TcpStream::connect((relay.address, 5432)).await.unwrap();
    let startup = b"\0\x03\0\0user\0anyone\0\0";
    let length = u32::try_from(startup.len() + 4).unwrap();
    stream.write_all(&[&length.to_be_bytes()[..], startup].concat()).await.unwrap();
    let (from, mut to) = stream.into_split();
    let (heard, mut hears) = tokio::sync::mpsc::channel(1);
    let reading = super::hear_out(from, heard);
    let saying = async move {
        hears.recv().await.expect("the login is answered");
        let mut said = 0;
        while said < MESSAGES {
            let burst = 1 + random.below(8);
            for _ in 0..burst {
                if to.write_all(&batch(&mut random, first + said)).await.is_err() {
                    return Err(said);
                }
                said += 2;
            }
            if random.below(2) == 0 {
                // Until it is silent: how many answers there are, nobody here knows.
                while tokio::time::timeout(std::time::Duration::from_millis(3), hears.recv())
                    .await
                    .is_ok_and(|heard| heard.is_some())
                {}
            }
        }
        to.write_all(&[message(b'S', &[]), message(b'X', &[])].concat()).await.map_err(|_| said)?;
        Ok::<usize, usize>(said)
    };
    let both = async { tokio::join!(reading, saying) };
    let (last, said) = tokio::time::timeout(PATIENCE * 4, both).await.expect("the connection ends");
    said.map_or_else(|said| (said, Some(last)), |said| (said, None))
}

/// Waits for the server, which may have crashed and come back.
async fn comes_back(database: &Postgres) {
    let again = async {
        while database.sql("orders", "select 1").await.is_err() {
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(PATIENCE, again).await.expect("the server comes back");
}

/// The processes of the server that have crashed.
fn crashed(log: &str) -> BTreeSet<i64> {
    let crashes = log.lines().filter(|line| line.contains(" was terminated by signal "));
    crashes.filter_map(|line| line.split_once("server process (PID ")?.1.split_once(')')?.0.parse().ok()).collect()
}

/// What the server says to have run: the kind, and the text.
fn ran(log: &str, process: i64) -> Vec<(&'static str, String)> {
    let prefix = format!("{process}|");
    let mut ran = Vec::new();
    // More of what has run already.
    let mut fetches = false;
    for line in log.lines().filter_map(|line| line.strip_prefix(&prefix)) {
        if let Some(text) = line.strip_prefix("LOG:  statement: ") {
            ran.push(("query", text.to_owned()));
        } else if let Some(run) = line.strip_prefix("LOG:  execute ") {
            fetches = run.starts_with("fetch from ");
            if let Some((_name, text)) = run.split_once(": ").filter(|_| !fetches) {
                ran.push(("execute", text.to_owned()));
            }
        } else if line.starts_with("ERROR:  portal ") && line.ends_with(" cannot be run") && !fetches {
            // It is done, and was logged before that was noticed.
            ran.pop();
        }
    }
    ran
}

#[tokio::test]
async fn the_audit_log_has_what_the_log_of_the_server_has() {
    let world = World::start().await;
    let settings =
        "alter system set log_statement = 'all'; alter system set log_line_prefix = '%p|'; select pg_reload_conf();";
    world.database.sql("postgres", settings).await.unwrap();
    world.database.sql("orders", "create table t (n int); grant all on t to db_read;").await.unwrap();
    let relay = world.relay(|config| config["audit"] = json!("statements")).await;
    let (mut said, mut connections, mut texts, mut compared) = (0, 0, 0, 0);
    let mut ended_early = BTreeMap::new();
    while said < wanted() {
        let (now, last) = play(&relay, connections, said).await;
        said += now;
        connections += 1;
        ended_early.extend(last.map(|last| (connections, last)));
        comes_back(&world.database).await;
    }
    let count = |event: &str| relay.log().matches(&format!("\"event\":\"{event}\"")).count();
    let all = async {
        while u64::try_from(count("connection_closed") + count("connection_refused")).unwrap() < connections {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, all).await.expect("every connection has a record of its end");
    let lines: Vec<Value> = relay.log().lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let log = std::fs::read_to_string(world.database.socket_folder().join("server.log")).unwrap();
    // PostgreSQL 15 itself crashes after some thousands of such messages, and ends the connection behind that too.
    let crashed = crashed(&log);
    assert!(ended_early.len() <= 2 * crashed.len(), "{crashed:?} have crashed, but {ended_early:?} have ended");
    for conn in 1..=connections {
        let of =
            |event: &'static str| lines.iter().filter(move |line| line["event"] == event && line["conn_id"] == conn);
        let violated: Vec<_> = of("protocol_violation").collect();
        assert!(violated.is_empty(), "{conn}: {violated:?}");
        let Some(opened) = of("connection_opened").next() else {
            assert!(!crashed.is_empty(), "connection {conn} was refused");
            continue;
        };
        let process = opened["db_conn_id"].as_i64().unwrap();
        let skipped: Vec<&Value> = of("statement_not_run").map(|line| &line["statement"]).collect();
        let ours: Vec<_> = of("statement")
            .filter(|line| line["kind"] != "prepare" && !skipped.contains(&&line["statement"]))
            .map(|line| {
                let text = line["sql"].as_str().map(str::to_owned);
                // What a server that crashes has not come to, it has not run.
                let is_cut_short = crashed.contains(&process) || ended_early.contains_key(&conn);
                let may_be_refused = text.is_none() || is_cut_short;
                Ours { kind: line["kind"].as_str().unwrap().to_owned(), may_be_refused, text }
            })
            .collect();
        let theirs = ran(&log, process);
        agree(&theirs, &ours).unwrap_or_else(|why| panic!("connection {conn} process {process}: {why}"));
        compared += theirs.len();
        texts += ours.iter().filter(|ours| ours.text.is_some()).count();
    }
    let crashed = crashed.len();
    println!(
        "{said} messages, {connections} connections ({crashed} crashed), {compared} statements, {texts} with their texts"
    );
    assert!(compared > said / 20 && texts > compared / 2, "{compared} of {said}, {texts}");
    world.stop().await;
}
