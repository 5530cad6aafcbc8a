//! MariaDB and MySQL, whose general logs have a line for whatever runs.

use std::net::Ipv4Addr;
use std::path::Path;

use bastion_sandbox::mariadb::Flaws;
use bastion_sandbox::mysql::{self, Mysql};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::{MESSAGES, Ours, Random, agree, wanted};
use crate::secrets::{self, SECRET, Secrets};
use crate::support::PATIENCE;
use crate::{relay_mysql, support};

pub(crate) const DEPRECATE_EOF: u32 = 1 << 24;
/// Protocol 4.1 with plugins, several statements in one query, several results.
pub(crate) const CAPABILITIES: u32 = 1 | 1 << 9 | 1 << 13 | 1 << 15 | 1 << 16 | 1 << 17 | 1 << 18 | 1 << 19 | 1 << 21;
/// MariaDB's "the last" statement.
const LAST: u32 = u32::MAX;
/// In texts that SQL has prepared, which no client of ours prepares otherwise.
const OF_SQL: &str = "of SQL";

pub(crate) fn packet(number: u8, parts: &[&[u8]]) -> Vec<u8> {
    let payload = parts.concat();
    let mut head = u32::try_from(payload.len()).unwrap().to_le_bytes();
    head[3] = number;
    [&head, &payload[..]].concat()
}

/// SQL that no other message has.
fn sql(random: &mut Random, number: usize) -> String {
    match random.below(22) {
        0 => format!("select * from nowhere_{number}"),
        1 => format!("selct {number}"),
        2 => format!("select {number}; set @a = {number}; select {number} + 1"),
        3 => format!("select {number}; selct {number}; select {number} + 1"),
        4 => format!("begin /* {number} */"),
        5 => format!("commit /* {number} */"),
        6 => format!("prepare x from 'select ''{OF_SQL}'', {number}'"),
        7 => format!("execute x /* {number} */"),
        8 => format!("deallocate prepare x /* {number} */"),
        9 => format!("execute immediate 'select ''{OF_SQL}'', {number}'"),
        10 => format!("call scratch.pretends({number})"),
        11 => format!("call scratch.p({number})"),
        12 => format!("insert into scratch.t values ({number})"),
        13 => String::new(),
        _ => format!("select {number} union all select 2"),
    }
}

fn sql_to_prepare(random: &mut Random, number: usize) -> String {
    match random.below(10) {
        0 => format!("select * from nowhere_{number}"),
        1 => format!("selct {number}"),
        2 => format!("call scratch.pretends({number})"),
        3 => format!("call scratch.p({number})"),
        4 => format!("insert into scratch.t values ({number})"),
        5 => format!("insert into scratch.t values (?), ({number})"),
        6 => format!("select ?, {number}"),
        7 => format!("execute x /* {number} */"),
        _ => format!("select {number} union all select 2"),
    }
}

/// Whether the connection of this number does nothing for which a server refuses a statement that it knows, but for missing
/// parameters. What the others are refused is known to their clients alone.
fn is_strict(connection: u64) -> bool {
    !(connection + 1).is_multiple_of(3)
}

/// Whether the server may have no line for an execute of this text.
fn may_fail(connection: u64, text: &str) -> bool {
    let writes = text.starts_with("insert ") && is_read_only(connection);
    text.contains('?') || !is_strict(connection) || text.contains("pretends") || writes
}

/// Every other connection has a session that the relay sets up.
fn is_read_only(connection: u64) -> bool {
    connection % 2 == 1
}

/// One client: what it knows of the numbers that the server gives.
struct Client {
    random: Random,
    is_strict: bool,
    /// Asks for cursors. MySQL 9 answers what is run without one while it is open in a way that nobody can read.
    has_cursors: bool,
    /// Of the next statement, as far as it has counted.
    next: u32,
}

impl Client {
    fn pick(&mut self) -> u32 {
        let far = u32::try_from(self.random.below(6)).unwrap();
        match self.random.below(12) {
            0 | 1 => LAST,
            2 => 7_777_777,
            3 => self.next.saturating_add(far / 2),
            _ => self.next.saturating_sub(far),
        }
    }

    fn query(&mut self, text: &str) -> Vec<u8> {
        // Every one of these takes a number.
        self.next += u32::from(text.starts_with("prepare ") || text.starts_with("execute immediate "));
        packet(0, &[b"\x03", text.as_bytes()])
    }

    fn prepare(&mut self, text: &str) -> Vec<u8> {
        self.next += 1;
        packet(0, &[b"\x16", text.as_bytes()])
    }

    fn execute(&mut self) -> Vec<u8> {
        let (statement, flags) = (self.pick(), u8::from(self.random.below(5) == 0 && self.has_cursors));
        // One parameter, which is 7; now and then none, or nonsense.
        let values: &[u8] = match self.random.below(12) {
            0 => &[],
            1 => &[0, 9],
            _ => &[0, 1, 3, 0, 7, 0, 0, 0],
        };
        packet(0, &[b"\x17", &statement.to_le_bytes(), &[flags, 1, 0, 0, 0], values])
    }

    /// Commands that come together, some of them in an order that no library has.
    fn batch(&mut self, number: usize) -> Vec<u8> {
        let (how, statement) = (self.random.below(32), self.pick().to_le_bytes());
        let of = |code: u8, rest: &[u8]| packet(0, &[&[code], &statement, rest]);
        match how {
            0 => packet(0, &[]),
            1 => [packet(0, &[]), packet(0, &[b"\x0e"])].concat(),
            2 => packet(0, &[b"\x09"]),
            3 => packet(0, &[b"\x04t\0"]),
            4 => packet(0, &[b"\x02events"]),
            5 => packet(0, &[b"\x02nowhere"]),
            6 => packet(0, &[b"\x50whatever"]),
            7 if !self.is_strict => of(0x18, &[0, 0, b'x']),
            8 if !self.is_strict => of(0x18, &[9, 0, b'x']),
            9 => of(0x1a, &[]),
            10 | 11 => of(0x1c, &[2, 0, 0, 0]),
            12..=14 => of(0x19, &[]),
            15 if number.is_multiple_of(5) => packet(0, &[b"\x1f"]),
            // The answer to the question for a proof comes along.
            16 if number.is_multiple_of(5) => {
                [packet(0, &[b"\x11anyone\0\0scratch\0-\0mysql_native_password\0"]), packet(2, &[])].concat()
            }
            // Bulk: parameters with their types.
            17 if !self.is_strict => of(0xfa, &[128, 0, 3, 0, 0, 7, 0, 0, 0, 0, 7, 0, 0, 0]),
            18..=23 => {
                let text = sql(&mut self.random, number);
                self.query(&text)
            }
            24..=26 => {
                let text = sql_to_prepare(&mut self.random, number);
                let prepare = self.prepare(&text);
                [prepare, self.execute()].concat()
            }
            27 => {
                let text = sql_to_prepare(&mut self.random, number);
                self.prepare(&text)
            }
            _ => self.execute(),
        }
    }
}

/// A connection that is let in.
pub(crate) async fn login(address: Ipv4Addr, port: u16, capabilities: u32) -> TcpStream {
    let mut stream = TcpStream::connect((address, port)).await.unwrap();
    let _greeting = read(&mut stream).await;
    let head = [&capabilities.to_le_bytes()[..], &(1_u32 << 24).to_le_bytes(), &[45], &[0; 23]].concat();
    // Without the first one, the last four bytes are MariaDB's.
    let head = if capabilities & 1 == 0 { [&head[..28], &[0b10100, 0, 0, 0]].concat() } else { head };
    stream.write_all(&packet(1, &[&head, b"anyone\0\0mysql_native_password\0"])).await.unwrap();
    loop {
        let (number, payload) = read(&mut stream).await;
        match payload.first() {
            Some(0) => return stream,
            Some(0xfe) => stream.write_all(&packet(number + 1, &[])).await.unwrap(),
            _ => assert_eq!(payload.first(), Some(&1), "{}", String::from_utf8_lossy(&payload)),
        }
    }
}

pub(crate) async fn read(stream: &mut TcpStream) -> (u8, Vec<u8>) {
    let mut head = [0; 4];
    stream.read_exact(&mut head).await.unwrap();
    let length = u32::from_le_bytes([head[0], head[1], head[2], 0]);
    let mut payload = vec![0; usize::try_from(length).unwrap()];
    stream.read_exact(&mut payload).await.unwrap();
    (head[3], payload)
}

/// One connection: says so many messages, and waits now and then.
async fn play(address: Ipv4Addr, is_mariadb: bool, number: u64, first: usize) -> usize {
    let random = Random::of(number);
    // Half of each have EOF packets, and some are MariaDB's own.
    let port = 3306 + u16::from(is_read_only(number));
    let has_eof = number / 2 % 2 == 1;
    let capabilities = CAPABILITIES | if has_eof { 0 } else { DEPRECATE_EOF };
    let capabilities = if is_mariadb && number % 5 < 3 { capabilities & !1 } else { capabilities };
    let mut stream = login(address, port, capabilities).await;
    stream.write_all(&packet(0, &[b"\x16select 1"])).await.unwrap();
    let (_, payload) = read(&mut stream).await;
    let next = u32::from_le_bytes(*payload[1..].first_chunk().unwrap()) + 1;
    let mut client = Client { random, is_strict: is_strict(number), has_cursors: is_mariadb || has_eof, next };
    let (from, mut to) = stream.into_split();
    let (heard, mut hears) = tokio::sync::mpsc::channel(1);
    let reading = super::hear_out(from, heard);
    let saying = async move {
        let mut said = 0;
        while said < MESSAGES {
            let burst = 1 + client.random.below(8);
            for _ in 0..burst {
                let batch = client.batch(first + said);
                if to.write_all(&batch).await.is_err() {
                    return Err(said);
                }
                said += 1;
            }
            // Until it is silent: how many answers there are, nobody here knows. Nobody hears those that come behind a goodbye.
            let patience = if said < MESSAGES { 3 } else { 300 };
            if said >= MESSAGES || client.random.below(2) == 0 {
                while tokio::time::timeout(std::time::Duration::from_millis(patience), hears.recv())
                    .await
                    .is_ok_and(|heard| heard.is_some())
                {}
            }
        }
        to.write_all(&packet(0, &[b"\x01"])).await.map_err(|_| said)?;
        Ok::<usize, usize>(said)
    };
    let both = async { tokio::join!(reading, saying) };
    let (last, said) = tokio::time::timeout(PATIENCE * 4, both).await.expect("the connection ends");
    said.unwrap_or_else(|said| panic!("connection {number}: it has ended after {said} messages: {last}"))
}

/// What the server says to have run: the kind, and the text.
///
/// It has no line for a command that it has refused before it ran: a prepare with an error in its SQL, an execute whose
/// number or parameters are wrong, a database that is not there; and none for an execute that has failed. Where SQL has prepared or executes something, it has a
/// line of that besides the one of the query. Parameters are filled in, but for those of a bulk; here all of them are 7.
fn ran(log: &str, connection: i64) -> Vec<(&'static str, String)> {
    let mut ran: Vec<(&'static str, String)> = Vec::new();
    for line in log.lines() {
        let Some((_time, rest)) = line.split_once('\t') else { continue };
        let Some((id, command, text)) = rest.trim_start_matches('\t').split_once('\t').and_then(|(command, text)| {
            let (id, command) = command.trim_start().split_once(' ')?;
            Some((id, command, text))
        }) else {
            continue;
        };
        if id.parse() != Ok(connection) {
            continue;
        }
        let is_of_sql = text.contains(OF_SQL);
        let by_sql = |ran: &[(&str, String)]| {
            ran.last().is_some_and(|(kind, last)| *kind == "query" && last.starts_with("execute "))
        };
        let kind = match command {
            "Query" => "query",
            "Prepare" if !is_of_sql => "prepare",
            "Execute" if !(is_of_sql && by_sql(&ran)) => "execute",
            "Init DB" if !text.starts_with("Access denied") => "command",
            _ => continue,
        };
        let text = text.replace('?', "7");
        // MySQL prepares once more for the types of parameters that come, and says so.
        if kind != "prepare" || !ran.contains(&(kind, text.clone())) {
            ran.push((kind, text));
        }
    }
    ran
}

/// What the relay itself does, for its clients' resets and changes of user.
fn is_of_the_relay(kind: &str, text: &str) -> bool {
    let is_set = text == "SET SESSION TRANSACTION READ ONLY" || text.starts_with("SET @@session.");
    if kind == "query" { is_set } else { kind == "command" && text == "scratch" }
}

/// What the servers are to have, before anything is logged.
fn settings(log: &Path) -> String {
    let pretended = "Unknown prepared statement handler (1) given to mysqld_stmt_execute";
    format!(
        "create table scratch.t (n int);
        set global general_log_file = '{}'; set global log_output = 'FILE'; set global general_log = ON;
        delimiter ~
        create procedure scratch.p(a int) begin select a; select a + 1; end~
        create procedure scratch.pretends(a int) begin
        set @ran = a; signal sqlstate 'HY000' set mysql_errno = 1243, message_text = '{pretended}'; end~",
        log.display()
    )
}

/// Two targets of the same server: the session of the second one is set up by the relay.
fn targets(mut target: Value) -> Value {
    target["database"] = json!("scratch");
    let (mut a, mut b) = (target.clone(), target);
    (a["read_only"], b["read_only"]) = (json!(false), json!(true));
    json!({"a": a, "b": b})
}

/// Plays, and compares: how much that was.
async fn compare(address: Ipv4Addr, is_mariadb: bool, log: impl Fn() -> String, general_log: &Path) -> String {
    let (mut said, mut connections) = (0, 0);
    while said < wanted() {
        said += play(address, is_mariadb, connections, said).await;
        connections += 1;
    }
    let closed = || log().matches("\"event\":\"connection_closed\"").count();
    let all = async {
        while u64::try_from(closed()).unwrap() < connections {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, all).await.expect("every connection has a record of its end");
    let lines: Vec<Value> = log().lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let theirs = std::fs::read(general_log).unwrap();
    let theirs = String::from_utf8_lossy(&theirs);
    let (mut compared, mut texts) = (0, 0);
    for conn in 1..=connections {
        let of =
            |event: &'static str| lines.iter().filter(move |line| line["event"] == event && line["conn_id"] == conn);
        let violated: Vec<_> = of("protocol_violation").collect();
        assert!(violated.is_empty(), "{conn}: {violated:?}");
        let process = of("connection_opened").next().unwrap()["db_conn_id"].as_i64().unwrap();
        let skipped: Vec<&Value> = of("statement_not_run").map(|line| &line["statement"]).collect();
        let ours: Vec<Ours> = of("statement")
            .filter(|line| line["kind"] != "command" || line["name"] == "init_db")
            .filter(|line| !skipped.contains(&&line["statement"]))
            .map(|line| {
                let (kind, text) = (line["kind"].as_str().unwrap(), line["sql"].as_str());
                let may_be_refused = text.is_none_or(|text| match kind {
                    "execute" => may_fail(conn - 1, text),
                    _ => text == "nowhere",
                });
                Ours { kind: kind.to_owned(), text: text.map(|text| text.replace('?', "7")), may_be_refused }
            })
            .collect();
        let theirs: Vec<_> =
            ran(&theirs, process).into_iter().filter(|(kind, text)| !is_of_the_relay(kind, text)).collect();
        agree(&theirs, &ours).unwrap_or_else(|why| panic!("connection {conn}: {why}"));
        compared += theirs.len();
        texts += ours.iter().filter(|ours| ours.text.is_some()).count();
    }
    assert!(compared > said / 20 && texts > compared / 2, "{compared} of {said}, {texts}");
    format!("{said} messages, {connections} connections, {compared} statements, {texts} with their texts")
}

#[tokio::test]
async fn the_audit_log_has_what_the_general_log_of_mariadb_has() {
    let world = relay_mysql::World::start(Flaws::default(), |relay| {
        relay["audit"] = json!("statements");
        relay["target"] = targets(relay["target"]["events"].clone());
    })
    .await;
    let log = world.database.socket().with_file_name("general.log");
    world.database.sql("scratch", &settings(&log)).await.unwrap();
    println!("{}", compare(world.address, true, || world.log(), &log).await);
    world.stop().await;
}

/// Only where `scripts/setup clients` has found a MySQL.
#[tokio::test]
async fn the_audit_log_has_what_the_general_log_of_mysql_has() {
    if !Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.tools/mysql/bin/mysqld")).exists() {
        println!("there is no MySQL in .tools: nothing is compared with it");
        return;
    }
    let world = support::World::start().await;
    let database = Mysql::start(world.folder.path()).await.unwrap();
    let secrets = Secrets::start(world.folder.path()).await;
    secrets.create(SECRET, mysql::secret()).await;
    let log = database.socket().with_file_name("general.log");
    // Texts as they have come, and not as MySQL writes them again.
    database.sql(&format!("set global log_raw = ON; {}", settings(&log))).await.unwrap();
    let mut target = secrets::target(database.port, SECRET);
    (target["engine"], target["host"]) = (json!("mysql"), json!(mysql::HOST));
    let mut definition = world.definition(|config| {
        (config["identity"], config["audit"]) = (json!("optional"), json!("statements"));
        config["target"] = targets(target);
    });
    let endpoint = secrets.front(&world).await.endpoint();
    definition.environment.insert("AWS_ENDPOINT_URL_SECRETS_MANAGER".to_owned(), endpoint);
    let relay = world.relay_of(&definition).await;
    println!("{}", compare(relay.address, false, || relay.log(), &log).await);
    database.stop().await;
    world.stop().await;
}
