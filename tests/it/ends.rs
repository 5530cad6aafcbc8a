//! Every end of a connection, through `bastion up` over 0, 1 and 4 lanes: what the client hears, what the audit log says and
//! what the terminal says. `docs/ends.md` is the table for people.

use std::io::ErrorKind;
use std::process::Stdio;
use std::time::Duration;

use bastion_sandbox::mariadb::{self, MariaDb};
use bastion_sandbox::postgres::{self, Flaws};
use bastion_sandbox::{Config, demo};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;
use tokio::sync::watch;

use crate::support::{PATIENCE, World, sandbox_program};
use crate::up::{Up, bastion};

const LANES: [&str; 3] = ["0", "1", "4"];
/// A live target of each engine, and one that nobody listens for.
const TARGETS: [[&str; 2]; 3] = [["orders", "dead-orders"], ["events", "dead-events"], ["bytes", "dead-bytes"]];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum How {
    Clean,
    Reset,
}

/// The way to a server, which the test can end in the server's place.
struct Line {
    end: watch::Sender<Option<How>>,
}

async fn carry(mut near: TcpStream, server: Option<u16>, mut ends: watch::Receiver<Option<How>>) {
    ends.mark_unchanged();
    let copying = async {
        match server {
            Some(port) => {
                let mut far = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
                let ended = tokio::io::copy_bidirectional(&mut near, &mut far).await;
                ended.is_err_and(|error| error.kind() == ErrorKind::ConnectionReset)
            }
            None => {
                let (mut read, mut write) = near.split();
                let _ended = tokio::io::copy(&mut read, &mut write).await;
                let _gone = write.shutdown().await;
                false
            }
        }
    };
    let is_reset = tokio::select! {
        is_reset = copying => is_reset,
        _ = ends.changed() => *ends.borrow() == Some(How::Reset),
    };
    if is_reset {
        near.set_zero_linger().unwrap();
    }
}

/// What a client hears at the end, behind what the database has said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hears {
    End,
    Reset,
    /// An error with this number or SQLSTATE in it, and then the end.
    Error(&'static [u8]),
    /// It is gone.
    Nothing,
}

async fn assert_hears(client: &mut TcpStream, wanted: Hears, row: &str) {
    let mut said = Vec::new();
    let ended = tokio::time::timeout(PATIENCE, client.read_to_end(&mut said)).await;
    let ended = ended.unwrap_or_else(|_| panic!("{row}: nothing comes")).map(|_| ()).map_err(|error| error.kind());
    let text = String::from_utf8_lossy(&said);
    match wanted {
        Hears::Nothing => {}
        Hears::End => assert_eq!((text.as_ref(), ended), ("", Ok(())), "{row}"),
        Hears::Reset => assert_eq!((text.as_ref(), ended), ("", Err(ErrorKind::ConnectionReset)), "{row}"),
        Hears::Error(code) => {
            assert_eq!(ended, Ok(()), "{row}: {text}");
            assert!(said.windows(code.len()).any(|part| part == code) && text.contains("bastion: "), "{row}: {text}");
        }
    }
}

/// A client whose session is idle.
async fn client(up: &Up, engine: usize) -> TcpStream {
    let mut socket = TcpStream::connect(("127.0.0.1", up.port(TARGETS[engine][0]))).await.unwrap();
    let began = tokio::time::timeout(PATIENCE, begin(&mut socket, engine));
    began.await.unwrap_or_else(|_| panic!("no session of {}", TARGETS[engine][0]));
    socket
}

async fn begin(socket: &mut TcpStream, engine: usize) {
    match engine {
        0 => {
            socket.write_all(b"\0\0\0\x15\0\x03\0\0user\0anyone\0\0").await.unwrap();
            let mut said = Vec::new();
            while !said.ends_with(b"Z\0\0\0\x05I") {
                assert!(socket.read_buf(&mut said).await.unwrap() > 0, "{}", String::from_utf8_lossy(&said));
            }
        }
        1 => {
            let _greeting = packet(socket).await;
            // Protocol 4.1, plugins, transactions; no password.
            let mut login = vec![0x01, 0xa2, 0x08, 0, 0, 0, 0, 1, 45];
            login.extend([0; 23]);
            login.extend(b"anyone\0\0mysql_native_password\0");
            let mut head = vec![u8::try_from(login.len()).unwrap(), 0, 0, 1];
            head.extend(login);
            socket.write_all(&head).await.unwrap();
            let (number, mut answer) = packet(socket).await;
            if answer[0] == 0xfe {
                socket.write_all(&[0, 0, 0, number + 1]).await.unwrap();
                answer = packet(socket).await.1;
            }
            assert_eq!(answer[0], 0, "{}", String::from_utf8_lossy(&answer));
        }
        _ => {
            socket.write_all(b"hello").await.unwrap();
            socket.read_exact(&mut [0; 5]).await.unwrap();
        }
    }
}

async fn packet(socket: &mut TcpStream) -> (u8, Vec<u8>) {
    let mut head = [0; 4];
    socket.read_exact(&mut head).await.unwrap();
    let mut payload = vec![0; usize::from(head[0]) | usize::from(head[1]) << 8];
    socket.read_exact(&mut payload).await.unwrap();
    (head[3], payload)
}

/// Both databases, the ways to them, and targets of every engine.
struct Ends {
    world: World,
    events: MariaDb,
    lines: [Line; 3],
}

impl Ends {
    async fn start() -> Self {
        let folder = World::folder();
        let events = MariaDb::start(folder.path(), &sandbox_program(), Flaws::default()).await.unwrap();
        let bound = [0; 3].map(|_: u8| std::net::TcpListener::bind("127.0.0.1:0").unwrap());
        let ports = bound.each_ref().map(|listener| listener.local_addr().unwrap().port());
        drop(bound);
        let world = World::start_in(folder, Flaws::default(), Some(&events), |config| configure(config, ports)).await;
        let server = [Some(world.database.port), Some(events.port), None];
        let mut ways = Vec::new();
        for (port, server) in ports.into_iter().zip(server) {
            ways.push(Line::at(port, server).await);
        }
        let lines = ways.try_into().unwrap_or_else(|_| unreachable!("three"));
        Self { world, events, lines }
    }

    async fn up(&self, lanes: &str) -> Up {
        let mut command = bastion(&self.world, "alice", &["up", "demo", "--json", "--lanes", lanes]);
        for target in TARGETS.iter().flatten().chain(&["orders-admin"]) {
            let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
            command.args(["--local-port", &format!("{target}={free}")]);
        }
        Up::of(command).await
    }

    /// The last record of this target that says how a connection ended, once there are so many.
    async fn record(&self, target: &str, count: usize) -> Value {
        let task = self.world.sandbox.tasks().last().unwrap().0.clone();
        let found = async {
            loop {
                let log = self.world.sandbox.task_log(&task);
                let records = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
                let records: Vec<Value> = records
                    .filter(|record| {
                        record["target"] == target
                            && (record["event"] == "connection_closed" || record["event"] == "connection_refused")
                    })
                    .collect();
                if records.len() >= count {
                    return records[count - 1].clone();
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let missing = |_| panic!("no record {count} of {target}:\n{}", self.world.sandbox.task_log(&task));
        tokio::time::timeout(PATIENCE, found).await.unwrap_or_else(missing)
    }

    async fn stop(self) {
        self.events.stop().await;
        self.world.stop().await;
    }
}

impl Line {
    /// From this port to that of a server, or to an echo.
    async fn at(port: u16, server: Option<u16>) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
        let end = watch::Sender::new(None);
        let ends = end.clone();
        #[expect(clippy::disallowed_methods, reason = "ends with the test")]
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                tokio::spawn(carry(near, server, ends.subscribe()));
            }
        });
        Self { end }
    }
}

/// The databases at the test's ports, and beside them targets that nobody listens for.
fn configure(config: &mut Config, ports: [u16; 3]) {
    let dead = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    demo::add_tcp_targets(config, &[("bytes".to_owned(), ports[2]), ("dead-bytes".to_owned(), dead)]).unwrap();
    let (_, endpoints) = config.rds_state.as_mut().unwrap();
    endpoints.push(format!("{}:{}", postgres::HOST, ports[0]));
    endpoints.push(format!("{}:{}", mariadb::HOST, ports[1]));
    config
        .change_relays(|relay| {
            for (engine, target) in ["orders", "events"].into_iter().enumerate() {
                relay["target"][target]["port"] = json!(ports[engine]);
                let mut gone = relay["target"][target].clone();
                gone["port"] = json!(dead);
                relay["target"][format!("dead-{target}")] = gone;
            }
        })
        .unwrap();
}

/// `ended_by` or `kind`, and whether there is an error.
fn said(record: &Value) -> (&str, bool) {
    let by = record["ended_by"].as_str().or_else(|| record["kind"].as_str()).unwrap_or_default();
    (by, !record["error"].is_null())
}

/// What `bastion up` has said in its terminal about connections of each target.
fn warned(events: &[Value], target: &str) -> Vec<String> {
    let start = format!("  ! a connection to {target} failed: ");
    let warnings = events.iter().filter(|event| event["event"] == "warning");
    let texts = warnings.filter_map(|event| event["message"].as_str()?.strip_prefix(&start).map(str::to_owned));
    texts.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_end_is_told_as_what_it_is_over_lanes_and_without() {
    use Hears::{End, Error, Nothing, Reset};
    let ends = Ends::start().await;
    for lanes in LANES {
        let up = ends.up(lanes).await;
        let mut counts = [0; 3];
        for (row, hears, record) in [
            ("database, clean", [End; 3], ("upstream", false)),
            ("database, reset", [Reset; 3], ("upstream", true)),
            ("client, clean", [Nothing; 3], ("client", false)),
            ("client, reset", [Nothing; 3], ("client", true)),
        ] {
            for (engine, hears) in hears.into_iter().enumerate() {
                let target = TARGETS[engine][0];
                let row = format!("{lanes} lanes, {target}: {row}");
                let mut client = client(&up, engine).await;
                match row.rsplit(": ").next().unwrap() {
                    "database, clean" => drop(ends.lines[engine].end.send_replace(Some(How::Clean))),
                    "database, reset" => drop(ends.lines[engine].end.send_replace(Some(How::Reset))),
                    "client, clean" => client.shutdown().await.unwrap(),
                    _ => client.set_zero_linger().unwrap(),
                }
                if hears != Nothing {
                    assert_hears(&mut client, hears, &row).await;
                }
                drop(client);
                counts[engine] += 1;
                let found = ends.record(target, counts[engine]).await;
                assert_eq!(said(&found), record, "{row}: {found}");
            }
        }
        // Refused before it began.
        let refused = [Error(b"08001"), Error(&[0xff, 0x95, 0x05]), Reset];
        for (engine, hears) in refused.into_iter().enumerate() {
            let target = TARGETS[engine][1];
            let row = format!("{lanes} lanes, {target}: database, refused");
            let mut client = TcpStream::connect(("127.0.0.1", up.port(target))).await.unwrap();
            if engine == 0 {
                client.write_all(b"\0\0\0\x15\0\x03\0\0user\0anyone\0\0").await.unwrap();
            }
            assert_hears(&mut client, hears, &row).await;
            assert_eq!(said(&ends.record(target, 1).await), ("dial", true), "{row}");
        }
        // The launcher leaves with connections open.
        let mut clients = Vec::new();
        for engine in 0..3 {
            clients.push(client(&up, engine).await);
        }
        let (code, events) = up.end().await;
        assert_eq!(code, Some(0));
        for (engine, hears) in [Error(b"08006"), Error(&[0xff, 0x86, 0x04]), Reset].into_iter().enumerate() {
            let row = format!("{lanes} lanes, {}: launcher, cut", TARGETS[engine][0]);
            assert_hears(&mut clients[engine], hears, &row).await;
        }
        for [alive, dead] in TARGETS {
            assert_eq!(warned(&events, alive), [""; 0], "{lanes} lanes");
            let told = warned(&events, dead);
            match dead {
                "dead-bytes" => {
                    assert_eq!(told.len(), 1, "{lanes} lanes: {told:?}");
                    let start = "cannot reach target dead-bytes at 127.0.0.1:";
                    assert!(told[0].starts_with(start) && told[0].contains("Connection refused"), "{told:?}");
                }
                _ => assert_eq!(told, [""; 0], "{lanes} lanes"),
            }
        }
    }
    ends.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_stops_says_so_to_every_engine() {
    let ends = Ends::start().await;
    for lanes in ["0", "4"] {
        let up = ends.up(lanes).await;
        let mut clients = Vec::new();
        for engine in 0..3 {
            clients.push(client(&up, engine).await);
        }
        let task = ends.world.sandbox.tasks().last().unwrap().0.clone();
        let pid = ends.world.sandbox.task_pid(&task).and_then(|pid| i32::try_from(pid).ok()).unwrap();
        let pid = rustix::process::Pid::from_raw(pid).unwrap();
        // The second signal ends the grace of the first.
        for text in ["draining", "\"ended_by\":\"shutdown\""] {
            rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
            crate::support::logged(&ends.world.sandbox, &task, text).await;
        }
        let hears = [Hears::Error(b"57P01"), Hears::Error(&[0xff, 0x1d, 0x04]), Hears::Reset];
        for (engine, hears) in hears.into_iter().enumerate() {
            let row = format!("{lanes} lanes, {}: task, cut", TARGETS[engine][0]);
            assert_hears(&mut clients[engine], hears, &row).await;
        }
        let (code, _) = up.ended().await;
        assert_eq!(code, Some(1));
    }
    ends.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_of_the_database_is_heard_each_time_and_is_no_news() {
    let ends = Ends::start().await;
    for lanes in LANES {
        let up = ends.up(lanes).await;
        let port = up.port("orders").to_string();
        for (options, code, times) in [
            // Most often where there is most to go wrong.
            ("dbname=nosuch", "3D000", if lanes == "4" { 40 } else { 10 }),
            ("options='-c nosuch=1'", "42704", 10),
            ("options='-c work_mem=none'", "22023", 10),
        ] {
            for time in 0..times {
                let mut psql = Command::new("psql");
                psql.env("PGCONNECT_TIMEOUT", "20").args(["-X", "-w", "-c", "select 1"]);
                let target = format!("host=127.0.0.1 port={port} user=anyone {options}");
                let (_, _, said) = crate::support::finish({
                    psql.args(["-d", &target]);
                    psql
                })
                .await;
                let expected = match code {
                    "3D000" => "FATAL:  database \"nosuch\" does not exist",
                    "42704" => "FATAL:  unrecognized configuration parameter \"nosuch\"",
                    _ => "FATAL:  invalid value for parameter \"work_mem\": \"none\"",
                };
                assert!(said.contains(expected), "{lanes} lanes, {code}, {time}: {said}");
            }
        }
        let mysql = up.port("events").to_string();
        for time in 0..10 {
            let mut client = Command::new("mariadb");
            client.args(["--no-defaults", "-h", "127.0.0.1", "-P", &mysql, "-u", "anyone", "-e", "select 1", "nosuch"]);
            let (_, _, said) = crate::support::finish(client).await;
            assert!(said.contains("nosuch") && !said.contains("1158"), "{lanes} lanes, {time}: {said}");
        }
        let (code, events) = up.end().await;
        assert_eq!(code, Some(0));
        for target in ["orders", "events"] {
            assert_eq!(warned(&events, target), [""; 0], "{lanes} lanes");
        }
    }
    ends.stop().await;
}

/// The command line client, whose session has been idle for longer than the server allows.
async fn timed_out(host: &str, port: u16, more: &[&str]) -> String {
    let mut client = Command::new("mariadb");
    client.args(["--no-defaults", "--skip-reconnect", "-N", "-h", host, "-P", &port.to_string()]).args(more);
    client.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut client = client.spawn().unwrap();
    let mut input = client.stdin.take().unwrap();
    input.write_all(b"set wait_timeout=1;\n\\! sleep 3\nselect 'still here';\n").await.unwrap();
    drop(input);
    let output = tokio::time::timeout(PATIENCE, client.wait_with_output()).await.unwrap().unwrap();
    let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    // Some versions show the statement first.
    said.lines().find(|line| line.starts_with("ERROR")).unwrap_or(&said).to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_the_database_has_timed_out_is_gone_as_directly() {
    let ends = Ends::start().await;
    let password = format!("-p{}", mariadb::PASSWORD);
    let directly = timed_out("127.0.0.1", ends.events.port, &["-u", "native_user", &password, "--ssl"]).await;
    assert!(directly.starts_with("ERROR 2006 (HY000)"), "{directly}");
    for lanes in LANES {
        let up = ends.up(lanes).await;
        let through = timed_out("127.0.0.1", up.port("events"), &["-u", "anyone"]).await;
        assert_eq!(through, directly, "{lanes} lanes");
        let (code, events) = up.end().await;
        assert_eq!((code, warned(&events, "events").len()), (Some(0), 0), "{lanes} lanes: {events:?}");
    }
    ends.stop().await;
}
