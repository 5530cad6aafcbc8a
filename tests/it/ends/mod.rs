//! Every end of a connection, through `bastion up` over 0, 1 and 4 lanes: what the client hears, what the audit log says and
//! what the terminal says. `docs/ends.md` is the table for people.

mod lease;
mod limits;
mod refusals;
mod rows;
mod tunnel;

use std::collections::HashMap;
use std::io::{self, ErrorKind};
use std::sync::Mutex;
use std::time::Duration;

use bastion_sandbox::mariadb::{self, MariaDb};
use bastion_sandbox::postgres::{self, Flaws};
use bastion_sandbox::{Config, Faults, demo, port};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::support::{PATIENCE, World, sandbox_program};
use crate::up::{Up, bastion};

const LANES: [&str; 3] = ["0", "1", "4"];
/// A target of each engine: PostgreSQL, MariaDB, bytes that come back.
const TARGETS: [&str; 3] = ["orders", "events", "bytes"];
/// And more of each, whose names begin so: nobody listens; whoever listens does not answer; there is room for one.
const KINDS: [&str; 3] = ["dead-", "silent-", "narrow-"];
/// Time limits that nobody can wait for here, in milliseconds.
const UPSTREAM_TIMEOUT: (&str, &str) = ("BASTION_TEST_UPSTREAM_TIMEOUT", "12000");

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum How {
    Clean,
    Reset,
    /// With bytes that are no TLS.
    Garbled,
    /// Nothing is read before the next end is wished for, then all that comes.
    Stuck,
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
                ended.is_err_and(|error| error.kind() == ErrorKind::ConnectionReset).then_some(How::Reset)
            }
            None => {
                let (mut read, mut write) = near.split();
                let _ended = tokio::io::copy(&mut read, &mut write).await;
                let _gone = write.shutdown().await;
                None
            }
        }
    };
    let how = tokio::select! {
        how = copying => how,
        _ = ends.changed() => *ends.borrow(),
    };
    match how {
        Some(How::Reset) => near.set_zero_linger().unwrap(),
        Some(How::Garbled) => {
            near.write_all(&[0x2a; 64]).await.unwrap();
            // Until the other side has left.
            let _gone = near.read_to_end(&mut Vec::new()).await;
        }
        Some(How::Stuck) => {
            let _next = ends.changed().await;
            let _all = near.read_to_end(&mut Vec::new()).await;
        }
        Some(How::Clean) | None => {}
    }
}

/// What a client hears at the end, behind what the database has said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hears {
    End,
    Reset,
    /// An error with this number or SQLSTATE in it, once, and then the end.
    Error(&'static [u8]),
    /// It is gone.
    Nothing,
}

/// All that comes until the end, and what kind of end it is.
async fn rest(client: &mut (impl AsyncRead + Unpin), row: &str) -> (Vec<u8>, Result<(), ErrorKind>) {
    let mut said = Vec::new();
    let ended = tokio::time::timeout(PATIENCE, client.read_to_end(&mut said)).await;
    let ended = ended.unwrap_or_else(|_| panic!("{row}: nothing comes")).map(|_| ()).map_err(|error| error.kind());
    (said, ended)
}

/// Also gives what it heard.
async fn assert_hears(client: &mut (impl AsyncRead + Unpin), wanted: Hears, row: &str) -> Vec<u8> {
    let (said, ended) = rest(client, row).await;
    let text = String::from_utf8_lossy(&said);
    match wanted {
        Hears::Nothing => {}
        Hears::End => assert_eq!((text.as_ref(), ended), ("", Ok(())), "{row}"),
        Hears::Reset => assert_eq!((text.as_ref(), ended), ("", Err(ErrorKind::ConnectionReset)), "{row}"),
        Hears::Error(code) => {
            assert_eq!(ended, Ok(()), "{row}: {text}");
            assert!(said.windows(code.len()).any(|part| part == code) && text.contains("bastion: "), "{row}: {text}");
            // One message of PostgreSQL, or one packet of MySQL.
            let length = match code[0] {
                0xff => usize::from(said[0]) + (usize::from(said[1]) << 8) + 4,
                _ => u32::from_be_bytes([said[1], said[2], said[3], said[4]]) as usize + 1,
            };
            assert_eq!(length, said.len(), "{row}: {text}");
        }
    }
    said
}

/// A client whose session is idle.
async fn client(up: &Up, engine: usize) -> TcpStream {
    client_of(up, "", engine).await
}

/// The same, of a target of this kind.
async fn client_of(up: &Up, kind: &str, engine: usize) -> TcpStream {
    let mut socket = TcpStream::connect(("127.0.0.1", up.port(&format!("{kind}{}", TARGETS[engine])))).await.unwrap();
    let began = tokio::time::timeout(PATIENCE, begin(&mut socket, engine));
    began.await.unwrap_or_else(|_| panic!("no session of {kind}{}", TARGETS[engine]));
    socket
}

/// A client that has said what it says first, and has no answer yet.
async fn opening(up: &Up, kind: &str, engine: usize) -> io::Result<TcpStream> {
    let mut socket = TcpStream::connect(("127.0.0.1", up.port(&format!("{kind}{}", TARGETS[engine])))).await?;
    if engine == 0 {
        socket.write_all(&startup(&[])).await?;
    }
    Ok(socket)
}

/// A client that is turned away. A reset may come before its `connect` has returned, which then fails with it.
async fn assert_turned_away(up: &Up, kind: &str, engine: usize, wanted: Hears, row: &str) -> Vec<u8> {
    match opening(up, kind, engine).await {
        Ok(mut client) => assert_hears(&mut client, wanted, row).await,
        Err(error) => {
            assert_eq!((wanted, error.kind()), (Hears::Reset, ErrorKind::ConnectionReset), "{row}");
            Vec::new()
        }
    }
}

async fn begin(socket: &mut TcpStream, engine: usize) {
    match engine {
        0 => {
            socket.write_all(&startup(&[])).await.unwrap();
            let mut said = Vec::new();
            while !said.ends_with(b"Z\0\0\0\x05I") {
                assert!(socket.read_buf(&mut said).await.unwrap() > 0, "{}", String::from_utf8_lossy(&said));
            }
        }
        1 => {
            let _greeting = packet(socket).await;
            socket.write_all(&mysql_login("")).await.unwrap();
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

/// Without a password.
fn mysql_login(database: &str) -> Vec<u8> {
    // Protocol 4.1, plugins, transactions; the next one is a database.
    let (flags, database) = if database.is_empty() { (0x01, String::new()) } else { (0x09, format!("{database}\0")) };
    let mut login = vec![flags, 0xa2, 0x08, 0, 0, 0, 0, 1, 45];
    login.extend([0; 23]);
    login.extend(format!("anyone\0\0{database}mysql_native_password\0").bytes());
    let head = [u8::try_from(login.len()).unwrap(), 0, 0, 1];
    [&head[..], &login].concat()
}

/// A startup packet of PostgreSQL with these parameters besides the user.
fn startup(parameters: &[(&str, &str)]) -> Vec<u8> {
    let mut body = b"\0\x03\0\0user\0anyone\0".to_vec();
    for (name, value) in parameters {
        body.extend(format!("{name}\0{value}\0").bytes());
    }
    body.push(0);
    [&u32::try_from(body.len() + 4).unwrap().to_be_bytes()[..], &body].concat()
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
    /// Does not accept, and has no room for anybody to wait.
    _silent: (socket2::Socket, Vec<socket2::Socket>),
    /// How many records of each target were looked at.
    seen: Mutex<HashMap<String, usize>>,
}

impl Ends {
    async fn start() -> Self {
        Self::start_with(|_| ()).await
    }

    async fn start_with(change: impl FnOnce(&mut Config)) -> Self {
        let folder = World::folder();
        let events = MariaDb::start(folder.path(), &sandbox_program(), Flaws::default()).await.unwrap();
        let ports = [(); 3].map(|()| port::free().unwrap());
        let silent = full_listener();
        let unanswered = silent.0.local_addr().unwrap().as_socket().unwrap().port();
        let world = World::start_in(folder, Flaws::default(), Some(&events), |config| {
            configure(config, ports, unanswered);
            change(config);
        })
        .await;
        world.sandbox.set_faults(Faults { log_can_end: true, ..Faults::default() });
        let server = [Some(world.database.port), Some(events.port), None];
        let mut ways = Vec::new();
        for (port, server) in ports.into_iter().zip(server) {
            ways.push(Line::at(port, server).await);
        }
        let lines = ways.try_into().unwrap_or_else(|_| unreachable!("three"));
        Self { world, events, lines, _silent: silent, seen: Mutex::default() }
    }

    /// A launcher with 0, 1 and 4 lanes each, all with the same task.
    async fn ups(&self, environment: &[(&str, &str)]) -> [Up; 3] {
        let kinds = [""].into_iter().chain(KINDS);
        let targets = kinds.flat_map(|kind| TARGETS.map(|target| format!("{kind}{target}")));
        let targets: Vec<String> = targets.chain(["orders-admin".to_owned()]).collect();
        ups(&self.world, &targets, environment).await
    }

    fn task(&self) -> String {
        self.world.sandbox.tasks().last().unwrap().0.clone()
    }

    /// The next record of this target that says how a connection ended.
    async fn record(&self, target: &str) -> Value {
        let (task, count) = (self.task(), {
            let mut seen = self.seen.lock().unwrap();
            let seen = seen.entry(target.to_owned()).or_default();
            *seen += 1;
            *seen
        });
        let found = async {
            loop {
                let log = self.world.sandbox.task_log(&task);
                let records = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
                let mut records = records.filter(|record| {
                    record["target"] == target
                        && (record["event"] == "connection_closed" || record["event"] == "connection_refused")
                });
                if let Some(record) = records.nth(count - 1) {
                    return record;
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

/// A launcher with 0, 1 and 4 lanes each, all with the same task, which has these targets.
async fn ups(world: &World, targets: &[String], environment: &[(&str, &str)]) -> [Up; 3] {
    let mut commands = Vec::new();
    for lanes in LANES {
        let mut command = bastion(world, "alice", &["up", "demo", "--json", "--lanes", lanes]);
        command.envs(environment.iter().copied());
        for target in targets {
            command.args(["--local-port", &format!("{target}={}", port::free().unwrap())]);
        }
        commands.push(command);
    }
    let [first, second, third] = commands.try_into().unwrap_or_else(|_| unreachable!("three"));
    // There is a task to join then.
    let first = Up::of(first).await;
    let (second, third) = tokio::join!(Up::of(second), Up::of(third));
    assert_eq!((&first.ready["task"], &first.ready["task"]), (&second.ready["task"], &third.ready["task"]));
    [first, second, third]
}

/// A listener whose queue is full, so that the kernel drops what wants to connect, and those who wait in it.
fn full_listener() -> (socket2::Socket, Vec<socket2::Socket>) {
    let socket = || socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    let listener = socket();
    listener.bind(&std::net::SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    listener.listen(0).unwrap();
    let address = listener.local_addr().unwrap();
    let mut waiting = Vec::new();
    loop {
        let client = socket();
        let connected = client.connect_timeout(&address, Duration::from_millis(300));
        waiting.push(client);
        if connected.is_err() {
            return (listener, waiting);
        }
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

/// The databases at the test's ports, and beside them the targets of every kind.
fn configure(config: &mut Config, ports: [u16; 3], silent: u16) {
    let dead = port::free().unwrap();
    let port_of = |kind: &str, engine: usize| match kind {
        "dead-" => dead,
        "silent-" => silent,
        _ => ports[engine],
    };
    let tcp = [""].into_iter().chain(KINDS).map(|kind| (format!("{kind}bytes"), port_of(kind, 2)));
    demo::add_tcp_targets(config, &tcp.collect::<Vec<_>>()).unwrap();
    let (_, endpoints) = config.rds_state.as_mut().unwrap();
    endpoints.push(format!("{}:{}", postgres::HOST, ports[0]));
    endpoints.push(format!("{}:{}", mariadb::HOST, ports[1]));
    config
        .change_relays(|relay| {
            relay["audit"] = json!("statements");
            for (engine, target) in TARGETS.into_iter().enumerate() {
                relay["target"][target]["port"] = json!(ports[engine]);
                for kind in KINDS {
                    let mut other = relay["target"][target].clone();
                    other["port"] = json!(port_of(kind, engine));
                    if kind == "narrow-" {
                        other["max_connections"] = json!(1);
                    }
                    relay["target"][format!("{kind}{target}")] = other;
                }
            }
        })
        .unwrap();
    for definition in &mut config.task_definitions {
        definition.environment.insert(UPSTREAM_TIMEOUT.0.to_owned(), UPSTREAM_TIMEOUT.1.to_owned());
    }
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
