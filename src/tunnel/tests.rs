//! The tunnel against the sandbox's gateway and agent, with small servers behind it.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use bastion_sandbox::gateway::{Event, Gateway, Knobs, Options, SessionSpec, Started};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::lanes::{Lanes, Opener};
use super::*;
use crate::types::Engine;

const LINGER: Duration = Duration::from_secs(20);
const PATIENCE: Duration = Duration::from_secs(30);

/// A gateway on loopback and a tunnel to `port` of this machine.
struct World {
    gateway: Gateway,
    tunnel: Tunnel,
    servers: Mutex<JoinSet<()>>,
}

struct TestControl {
    gateway: Gateway,
    address: std::net::SocketAddr,
    port: u16,
    /// What `start` answers, in order, and whether it must be wanted by then.
    script: Mutex<VecDeque<(bool, Start)>>,
}

enum Start {
    Asleep,
    Gone,
    Later,
    Session(&'static str),
}

impl TestControl {
    fn grant(&self, started: Started) -> SessionGrant {
        SessionGrant {
            session_id: started.session_id,
            token: started.token.into(),
            stream_url: format!("ws://{}{}", self.address, started.stream_path).into(),
        }
    }
}

impl Control for TestControl {
    fn sign_upgrade<'a>(
        &'a self,
        _url: &'a str,
        _now: SystemTime,
    ) -> BoxFuture<'a, Result<Vec<(String, SecretString)>, ControlError>> {
        Box::pin(async { Ok(Vec::new()) })
    }

    fn start(&self, wanted: bool) -> BoxFuture<'_, Result<SessionGrant, StartError>> {
        let (must, answer) = self.script.lock().unwrap().pop_front().expect("the script has run out");
        assert_eq!(wanted, must);
        let answer = match answer {
            Start::Asleep => Err(StartError::Asleep("the task has stopped".to_owned())),
            Start::Gone => Err(StartError::Gone("the task is gone".to_owned())),
            Start::Later => Err(StartError::Later(ControlError("no network".to_owned()))),
            Start::Session(id) => Ok(self.grant(self.gateway.start_session(spec(id, self.port)))),
        };
        Box::pin(async move { answer })
    }

    fn resume<'a>(&'a self, session_id: &'a str) -> BoxFuture<'a, Result<Option<SessionGrant>, ControlError>> {
        Box::pin(async move { Ok(self.gateway.resume_session(session_id).map(|started| self.grant(started))) })
    }
}

const FIRST: &str = "alice@example.com-0123456789abcdefg";

fn spec(session_id: &str, port: u16) -> SessionSpec {
    SessionSpec {
        session_id: session_id.to_owned(),
        target: "ecs:c_t_r".to_owned(),
        agent_host: IpAddr::V4(Ipv4Addr::LOCALHOST),
        port,
    }
}

impl World {
    async fn new(port: u16, config: Config) -> Self {
        Self::scripted(port, config, [(false, Start::Gone)]).await
    }

    async fn scripted(port: u16, config: Config, script: impl Into<VecDeque<(bool, Start)>>) -> Self {
        let gateway = Gateway::new(Options::default(), Arc::new(|_| Ok(())));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = gateway.router();
        let mut servers = JoinSet::new();
        servers.spawn(async move { axum::serve(listener, router).await.unwrap() });
        let started = gateway.start_session(spec(FIRST, port));
        let script = Mutex::new(script.into());
        let control = Arc::new(TestControl { gateway: gateway.clone(), address, port, script });
        let grant = control.grant(started);
        let tunnel = Tunnel::open(config, grant, control, CancellationToken::new()).await.unwrap();
        Self { gateway, tunnel, servers: Mutex::new(servers) }
    }

    async fn end(self) {
        self.tunnel.close().await;
        self.servers.into_inner().unwrap().shutdown().await;
    }
}

/// A server that does the same for each connection; its port.
async fn server<F: Future<Output = ()> + Send + 'static>(
    serve: impl Fn(TcpStream) -> F + Send + 'static,
) -> (u16, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut clients = JoinSet::new();
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            clients.spawn(serve(stream));
        }
    });
    (port, tasks)
}

async fn echo() -> (u16, JoinSet<()>) {
    server(|mut stream| async move {
        let (mut read, mut write) = stream.split();
        let _gone = tokio::io::copy(&mut read, &mut write).await;
    })
    .await
}

/// Waits for any input, then sends so many bytes and closes.
async fn source(length: usize) -> (u16, JoinSet<()>) {
    server(move |mut stream| async move {
        let mut first = [0];
        let _gone = stream.read(&mut first).await;
        let bytes: Vec<u8> = (0..length).map(|n| u8::try_from(n % 251).unwrap()).collect();
        let _gone = stream.write_all(&bytes).await;
    })
    .await
}

async fn exchange(mut stream: Stream, bytes: &[u8]) -> Vec<u8> {
    stream.write_all(bytes).await.unwrap();
    let mut answer = vec![0; bytes.len()];
    tokio::time::timeout(PATIENCE, stream.read_exact(&mut answer)).await.expect("stuck").unwrap();
    answer
}

#[tokio::test]
async fn many_connections_share_one_session() {
    let (port, _server) = echo().await;
    let world = World::new(port, Config::default()).await;
    let mut all = JoinSet::new();
    for n in 0..40_u8 {
        let stream = world.tunnel.connect(LINGER).unwrap();
        all.spawn(async move {
            let bytes = vec![n; 3000];
            assert!(exchange(stream, &bytes).await == bytes);
        });
    }
    while let Some(done) = all.join_next().await {
        done.unwrap();
    }
    assert_eq!(world.gateway.session_ids().len(), 1);
    world.end().await;
}

#[tokio::test]
async fn a_lone_line_feed_stays_one() {
    let (port, _server) = echo().await;
    let world = World::new(port, Config::default()).await;
    assert_eq!(exchange(world.tunnel.connect(LINGER).unwrap(), b"\n").await, b"\n");
    world.end().await;
}

#[tokio::test]
async fn a_refused_port_is_an_error_that_says_so() {
    let world = World::new(1, Config::default()).await;
    let mut stream = world.tunnel.connect(LINGER).unwrap();
    let error = tokio::time::timeout(PATIENCE, stream.read(&mut [0])).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
    assert!(error.to_string().contains("nothing listens on the relay's port"), "{error}");
    world.end().await;
}

#[tokio::test]
async fn the_answer_after_half_close_is_whole() {
    let (port, _server) = source(100_000).await;
    let world = World::new(port, Config::default()).await;
    let mut stream = world.tunnel.connect(LINGER).unwrap();
    stream.write_all(b"?").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = Vec::new();
    tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await.unwrap().unwrap();
    assert_eq!(answer.len(), 100_000);
    world.end().await;
}

#[tokio::test]
async fn a_slow_reader_alone_holds_back_the_sender_and_loses_nothing() {
    let (port, _server) = source(600_000).await;
    let world = World::new(port, Config { receive_bound: 64 * 1024, ..Config::default() }).await;
    let mut stream = world.tunnel.connect(LINGER).unwrap();
    stream.write_all(b"?").await.unwrap();
    // Until the bound is reached nothing is read.
    while world.tunnel.stats().down < 64 * 1024 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(world.tunnel.stats().down < 80 * 1024, "{:?}", world.tunnel.stats());
    let mut answer = Vec::new();
    tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await.unwrap().unwrap();
    assert!(answer.len() == 600_000 && answer.iter().enumerate().all(|(n, byte)| usize::from(*byte) == n % 251));
    world.end().await;
}

#[tokio::test]
async fn a_slow_reader_beside_others_is_reset_and_they_go_on() {
    let (port, _server) = source(300_000).await;
    let world = World::new(port, Config { receive_bound: 64 * 1024, ..Config::default() }).await;
    let mut slow = world.tunnel.connect(LINGER).unwrap();
    let mut quick = world.tunnel.connect(LINGER).unwrap();
    slow.write_all(b"?").await.unwrap();
    quick.write_all(b"?").await.unwrap();
    let mut answer = Vec::new();
    tokio::time::timeout(PATIENCE, quick.read_to_end(&mut answer)).await.unwrap().unwrap();
    assert_eq!(answer.len(), 300_000);
    let error = slow.read_to_end(&mut answer).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    assert!(error.to_string().contains("too slow"), "{error}");
    world.end().await;
}

#[tokio::test]
async fn the_end_of_the_session_is_never_a_clean_end_of_a_stream() {
    let (port, _server) = echo().await;
    let world = World::new(port, Config::default()).await;
    let mut stream = world.tunnel.connect(LINGER).unwrap();
    stream.write_all(b"x").await.unwrap();
    stream.read_exact(&mut [0]).await.unwrap();
    let id = world.gateway.session_ids().remove(0);
    assert!(world.gateway.terminate_session(&id));
    let error = tokio::time::timeout(PATIENCE, stream.read(&mut [0])).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    assert!(stream.write_all(b"x").await.is_err());
    assert!(matches!(world.tunnel.connect(LINGER), Err(ConnectError::Ended(_))));
    world.end().await;
}

#[tokio::test]
async fn a_session_that_is_over_is_followed_by_a_new_one_without_its_streams() {
    let (port, _server) = echo().await;
    let script = [(false, Start::Later), (true, Start::Session("alice-2"))];
    let world = World::scripted(port, Config::default(), script).await;
    let mut old = world.tunnel.connect(LINGER).unwrap();
    old.write_all(b"before").await.unwrap();
    let mut answer = [0; 6];
    old.read_exact(&mut answer).await.unwrap();
    world.gateway.terminate_session(FIRST);
    assert_eq!(old.read_u8().await.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    world.tunnel.up(PATIENCE).await.unwrap();
    // The old stream does not touch the new session, whose streams have other ids.
    let new = world.tunnel.connect(LINGER).unwrap();
    old.write_all(b"lost").await.unwrap_err();
    drop(old);
    assert_eq!(exchange(new, b"after").await, b"after");
    assert_eq!(world.gateway.session_ids(), ["alice-2"]);
    world.end().await;
}

#[tokio::test]
async fn what_is_asleep_is_brought_back_by_the_next_client_and_by_nothing_else() {
    let (port, _server) = echo().await;
    let script = [(false, Start::Asleep), (true, Start::Session("alice-2"))];
    let world = World::scripted(port, Config::default(), script).await;
    world.gateway.terminate_session(FIRST);
    let mut state = world.tunnel.state();
    state.wait_for(|state| matches!(state, State::Asleep { .. })).await.unwrap();
    let refused = world.tunnel.connect(LINGER).map(|_| ()).unwrap_err().to_string();
    assert_eq!(refused, "the tunnel is asleep until the next connection: the task has stopped");
    assert!(world.gateway.session_ids().is_empty());
    world.tunnel.up(PATIENCE).await.unwrap();
    assert_eq!(exchange(world.tunnel.connect(LINGER).unwrap(), b"awake").await, b"awake");
    world.end().await;
}

/// A stream goes on over a new websocket after the first one has fallen silent.
async fn outlives_silence(config: Config) {
    let (port, _server) = echo().await;
    let world = World::new(port, config).await;
    let mut stream = world.tunnel.connect(LINGER).unwrap();
    world.gateway.faults().happen(None, Event::FreezeClient).unwrap();
    stream.write_all(b"hello").await.unwrap();
    let mut answer = [0; 5];
    tokio::time::timeout(PATIENCE, stream.read_exact(&mut answer)).await.expect("nobody noticed").unwrap();
    assert_eq!(&answer, b"hello");
    assert_eq!(world.tunnel.stats().reconnects, 1);
    world.end().await;
}

#[tokio::test]
async fn a_silent_link_is_noticed_and_replaced() {
    outlives_silence(Config {
        ping_every: Duration::from_millis(200),
        pong_timeout: Duration::from_millis(300),
        ..Config::default()
    })
    .await;
}

#[tokio::test]
async fn a_silent_link_is_noticed_sooner_when_somebody_waits() {
    outlives_silence(Config {
        // Without somebody, nobody would ask for an hour.
        ping_every: Duration::from_secs(3600),
        pong_timeout: Duration::from_millis(300),
        quiet: Duration::from_millis(100),
        ..Config::default()
    })
    .await;
}

#[tokio::test]
async fn a_link_that_died_while_the_laptop_slept_is_noticed_at_once() {
    static SLEPT: AtomicU64 = AtomicU64::new(0);
    fn clock() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(SLEPT.load(Ordering::Relaxed))
    }
    let (port, _server) = echo().await;
    // Without the jump of the clock nobody would ask for an hour.
    let config = Config {
        ping_every: Duration::from_secs(3600),
        pong_timeout: Duration::from_millis(300),
        pulse_every: Duration::from_millis(50),
        wall_clock: clock,
        ..Config::default()
    };
    let world = World::new(port, config).await;
    let mut stream = world.tunnel.connect(LINGER).unwrap();
    world.gateway.faults().happen(None, Event::FreezeClient).unwrap();
    SLEPT.store(8 * 3600, Ordering::Relaxed);
    stream.write_all(b"hello").await.unwrap();
    let mut answer = [0; 5];
    tokio::time::timeout(PATIENCE, stream.read_exact(&mut answer)).await.expect("nobody noticed").unwrap();
    assert_eq!(&answer, b"hello");
    world.end().await;
}

#[tokio::test]
async fn bytes_survive_cuts_both_ways_with_frames_lost() {
    let (port, _server) = echo().await;
    let world = World::new(port, Config::default()).await;
    let knobs = Knobs {
        cut_client_every_ms: Some(400),
        when_down: bastion_sandbox::gateway::WhenDown::Drop,
        ..Knobs::default()
    };
    world.gateway.faults().set_all(knobs).unwrap();
    let bytes: Vec<u8> = (0..400_000_u32).map(|n| u8::try_from(n * 7 % 253).unwrap()).collect();
    let (mut read, mut write) = tokio::io::split(world.tunnel.connect(LINGER).unwrap());
    let sent = bytes.clone();
    let mut answer = vec![0; bytes.len()];
    let both = async {
        tokio::join!(async { write.write_all(&sent).await.unwrap() }, async {
            read.read_exact(&mut answer).await.unwrap()
        })
    };
    tokio::time::timeout(2 * PATIENCE, both).await.expect("stuck");
    assert!(answer == bytes);
    assert!(world.tunnel.stats().reconnects >= 1);
    world.end().await;
}

#[tokio::test]
async fn a_gateway_that_refuses_large_frames_is_learned() {
    let (port, _server) = echo().await;
    let world = World::new(port, Config::default()).await;
    world.gateway.faults().set_all(Knobs { max_frame: Some(5000), ..Knobs::default() }).unwrap();
    let bytes = vec![7; 400_000];
    let (mut read, mut write) = tokio::io::split(world.tunnel.connect(LINGER).unwrap());
    let sent = bytes.clone();
    let mut answer = vec![0; bytes.len()];
    let both = async {
        tokio::join!(async { write.write_all(&sent).await.unwrap() }, async {
            read.read_exact(&mut answer).await.unwrap()
        })
    };
    tokio::time::timeout(2 * PATIENCE, both).await.expect("stuck");
    assert!(answer == bytes);
    let id = world.gateway.session_ids().remove(0);
    assert!(world.gateway.snapshot(&id).unwrap().up.largest <= 8 * 1024 + 120);
    world.end().await;
}

/// Gives a new number as the token each time, and fails after so many.
struct TestPass {
    token: Mutex<u32>,
    good: u32,
}

impl Pass for TestPass {
    fn token(&self) -> Option<SecretString> {
        Some(self.token.lock().unwrap().to_string().into())
    }

    fn renew<'a>(&'a self, _refused: Option<&'a SecretString>) -> BoxFuture<'a, Result<(), ControlError>> {
        let mut token = self.token.lock().unwrap();
        *token += 1;
        let done = if *token > self.good { Err(ControlError("run aws sso login".to_owned())) } else { Ok(()) };
        Box::pin(std::future::ready(done))
    }
}

/// There are no further sessions.
struct NoOpener;

impl Opener for NoOpener {
    fn open(&self) -> BoxFuture<'_, Result<(Tunnel, String), lanes::LaneError>> {
        Box::pin(std::future::ready(Err(ControlError("one session is enough".to_owned()).into())))
    }

    fn end<'a>(&'a self, _session_id: &'a str) -> BoxFuture<'a, ()> {
        Box::pin(std::future::ready(()))
    }
}

/// A relay that answers so to lanes, knows no ends of connections and one token, gives the client its first bytes back and closes.
async fn guarded(lanes: &'static str, token: &'static str) -> (u16, JoinSet<()>) {
    server(move |mut stream| async move {
        let mut head = Vec::new();
        while !head.windows(4).any(|window| window == b"\r\n\r\n") {
            if stream.read_buf(&mut head).await.unwrap() == 0 {
                return;
            }
        }
        let head = String::from_utf8(head).unwrap();
        let (head, opening) = head.split_once("\r\n\r\n").unwrap();
        if head.contains("Upgrade: bastion-lane/1") {
            stream.write_all(format!("HTTP/1.1 {lanes}\r\ncontent-length: 0\r\n\r\n").as_bytes()).await.unwrap();
            return;
        }
        if !head.contains("Upgrade: bastion-conn/1") {
            stream.write_all(b"HTTP/1.1 426 Upgrade Required\r\ncontent-length: 0\r\n\r\n").await.unwrap();
            return;
        }
        if !head.contains(&format!("Authorization: Bearer {token}")) {
            let body = "{\"error\":\"prove who you are first\"}";
            let answer = format!("HTTP/1.1 401 Unauthorized\r\ncontent-length: {}\r\n\r\n{body}", body.len());
            stream.write_all(answer.as_bytes()).await.unwrap();
            return;
        }
        let answer = format!("HTTP/1.1 101 Switching Protocols\r\n\r\n{opening}");
        stream.write_all(answer.as_bytes()).await.unwrap();
    })
    .await
}

/// What a relay from before lanes answers.
const NO_LANES: &str = "426 Upgrade Required";
/// A startup packet of PostgreSQL.
const STARTUP: &[u8] = b"\0\0\0\x15\0\x03\0\0user\0anyone\0\0";

/// What a PostgreSQL client gets back for its startup packet.
async fn carried(tunnel: &Tunnel, pass: TestPass) -> (Result<(), client::CarryError>, Vec<u8>) {
    let lanes = Lanes::begin(tunnel.clone(), 1, Arc::new(pass), Arc::new(NoOpener));
    lanes.known(PATIENCE).await;
    assert!(lanes.lanes().borrow().plain);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (served, _) = listener.accept().await.unwrap();
    client.write_all(STARTUP).await.unwrap();
    let reading = async move {
        let mut seen = Vec::new();
        client.read_to_end(&mut seen).await.unwrap();
        seen
    };
    let both = async { tokio::join!(client::carry(&lanes, "orders", Engine::Postgres, served), reading) };
    let done = tokio::time::timeout(PATIENCE, both).await.expect("stuck");
    lanes.close().await;
    done
}

#[tokio::test]
async fn a_relay_without_lanes_is_served_the_plain_way() {
    for lanes in [NO_LANES, "404 Not Found", "400 Bad Request"] {
        let (port, _server) = guarded(lanes, "1").await;
        let world = World::new(port, Config::default()).await;
        let (ended, seen) = carried(&world.tunnel, TestPass { token: Mutex::new(1), good: 1 }).await;
        assert!(ended.is_ok() && seen == STARTUP, "{lanes}: {ended:?} {seen:?}");
        world.end().await;
    }
}

#[tokio::test]
async fn what_knows_no_upgrade_at_all_is_said_to_be_too_old() {
    let (port, _server) = server(|mut stream| async move {
        let mut head = Vec::new();
        while !head.windows(4).any(|window| window == b"\r\n\r\n") {
            if stream.read_buf(&mut head).await.unwrap() == 0 {
                return;
            }
        }
        stream.write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n").await.unwrap();
    })
    .await;
    let world = World::new(port, Config::default()).await;
    let (ended, seen) = carried(&world.tunnel, TestPass { token: Mutex::new(1), good: 1 }).await;
    let told = String::from_utf8_lossy(&seen).into_owned();
    assert!(ended.is_err() && told.starts_with('E') && told.contains("update bastion in the task"), "{told}");
    world.end().await;
}

#[tokio::test]
async fn a_client_whose_token_is_too_old_is_served_with_a_new_one() {
    let (port, _server) = guarded(NO_LANES, "2").await;
    let world = World::new(port, Config::default()).await;
    let (ended, seen) = carried(&world.tunnel, TestPass { token: Mutex::new(1), good: 2 }).await;
    assert!(ended.is_ok() && seen == STARTUP, "{ended:?} {seen:?}");
    // Refused for good: the client is told why, in its protocol.
    for (good, part) in
        [(1, "you could not prove again who you are: run aws sso login"), (9, "prove who you are first")]
    {
        let (ended, seen) =
            carried(&world.tunnel, TestPass { token: Mutex::new(if good == 9 { 7 } else { 1 }), good }).await;
        let told = String::from_utf8_lossy(&seen).into_owned();
        assert!(ended.is_err() && told.starts_with('E') && told.contains(part), "{told}");
    }
    world.end().await;
}

#[tokio::test]
async fn a_mysql_client_is_told_in_place_of_the_greeting() {
    let (port, _server) = guarded(NO_LANES, "2").await;
    let world = World::new(port, Config::default()).await;
    let pass = TestPass { token: Mutex::new(7), good: 9 };
    let lanes = Lanes::begin(world.tunnel.clone(), 1, Arc::new(pass), Arc::new(NoOpener));
    lanes.known(PATIENCE).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut client = tokio::process::Command::new("mariadb");
    client.args(["--no-defaults", "-h", "127.0.0.1", "-u", "anyone", "-e", "select 1", "-P"]);
    client.arg(listener.local_addr().unwrap().port().to_string()).kill_on_drop(true);
    let carrying = async {
        let (served, _) = listener.accept().await.unwrap();
        client::carry(&lanes, "events", Engine::Mysql, served).await
    };
    let both = async { tokio::join!(carrying, client.output()) };
    let (ended, output) = tokio::time::timeout(PATIENCE, both).await.expect("stuck");
    let said = String::from_utf8_lossy(&output.unwrap().stderr).into_owned();
    // Newer clients put a warning before it: nobody has proven yet who speaks.
    assert!(ended.is_err() && said.starts_with("ERROR ") && said.contains("1158"), "{said}");
    assert!(
        said.contains(
            "bastion: target events: no connection: prove who you are first. Look at the terminal where bastion runs"
        ),
        "{said}"
    );
    lanes.close().await;
    world.end().await;
}
