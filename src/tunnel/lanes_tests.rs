//! Lanes over the sandbox's gateway and agents, to a small relay in this process.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use bastion_sandbox::gateway::{Event, Gateway, Knobs, Odds, Options, Path, SessionSpec, Started, WhenDown};
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::client::CarryError;
use super::lanes::{Lanes, Opener};
use super::*;
use crate::link::Link;
use crate::types::Engine;

const PATIENCE: Duration = Duration::from_secs(120);

/// Sessions of one gateway, to one port.
#[derive(Clone)]
struct Sessions {
    gateway: Gateway,
    address: std::net::SocketAddr,
    port: u16,
    count: Arc<AtomicUsize>,
    /// A session that is over is followed by another.
    goes_on: bool,
    refuses: Arc<AtomicBool>,
}

impl Sessions {
    fn grant(&self, started: Started) -> SessionGrant {
        SessionGrant {
            session_id: started.session_id,
            token: started.token.into(),
            stream_url: format!("ws://{}{}", self.address, started.stream_path).into(),
        }
    }

    fn start(&self) -> SessionGrant {
        let number = self.count.fetch_add(1, Ordering::SeqCst);
        self.grant(self.gateway.start_session(SessionSpec {
            session_id: format!("alice@example.com-{number:016}"),
            target: "ecs:c_t_r".to_owned(),
            agent_host: IpAddr::V4(Ipv4Addr::LOCALHOST),
            port: self.port,
        }))
    }

    async fn tunnel(&self) -> Result<(Tunnel, String), ControlError> {
        if self.refuses.load(Ordering::SeqCst) {
            return Err(ControlError("too many sessions".to_owned()));
        }
        let grant = self.start();
        let id = grant.session_id.clone();
        let tunnel = Tunnel::open(Config::default(), grant, Arc::new(self.clone()), CancellationToken::new()).await;
        Ok((tunnel.map_err(|error| ControlError(error.to_string()))?, id))
    }
}

impl Control for Sessions {
    fn sign_upgrade<'a>(
        &'a self,
        _url: &'a str,
        _now: SystemTime,
    ) -> BoxFuture<'a, Result<Vec<(String, SecretString)>, ControlError>> {
        Box::pin(async { Ok(Vec::new()) })
    }

    fn start(&self, _wanted: bool) -> BoxFuture<'_, Result<SessionGrant, StartError>> {
        let gone = || StartError::Gone("one session".to_owned());
        Box::pin(async move { self.goes_on.then(|| Self::start(self)).ok_or_else(gone) })
    }

    fn resume<'a>(&'a self, session_id: &'a str) -> BoxFuture<'a, Result<Option<SessionGrant>, ControlError>> {
        Box::pin(async move { Ok(self.gateway.resume_session(session_id).map(|started| self.grant(started))) })
    }
}

impl Opener for Sessions {
    fn open(&self) -> BoxFuture<'_, Result<(Tunnel, String), ControlError>> {
        Box::pin(self.tunnel())
    }

    fn end<'a>(&'a self, session_id: &'a str) -> BoxFuture<'a, ()> {
        Box::pin(async {
            let _over_already = self.gateway.terminate_session(session_id);
        })
    }
}

impl Pass for () {
    fn token(&self) -> Option<SecretString> {
        None
    }

    fn renew<'a>(&'a self, _refused: Option<&'a SecretString>) -> BoxFuture<'a, Result<(), ControlError>> {
        Box::pin(std::future::ready(Ok(())))
    }
}

/// Joins lanes to links, as the relay does. Its targets: `echo`; `hash` answers with the SHA-256 of what came.
#[derive(Default)]
struct Relay {
    links: Mutex<HashMap<String, Link>>,
    /// No lane is answered while this is set.
    held: watch::Sender<bool>,
    /// Lanes that are not answered.
    waiting: watch::Sender<usize>,
}

impl Relay {
    async fn serve(self: Arc<Self>, listener: TcpListener) {
        let mut tasks = JoinSet::new();
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            stream.set_nodelay(true).unwrap();
            tasks.spawn(Arc::clone(&self).lane(stream));
        }
    }

    async fn lane(self: Arc<Self>, mut stream: TcpStream) {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            match stream.read_u8().await {
                Ok(byte) => head.push(byte),
                Err(_) => return,
            }
        }
        let head = String::from_utf8(head).unwrap();
        self.waiting.send_modify(|waiting| *waiting += 1);
        self.held.subscribe().wait_for(|held| !held).await.unwrap();
        self.waiting.send_modify(|waiting| *waiting -= 1);
        let header = |name: &str| {
            let line = head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
            line.unwrap_or_default().to_owned()
        };
        let link = match header("bastion-lane").as_str() {
            "new" => Some(self.begin(header("bastion-link"))),
            _ => self.links.lock().unwrap().get(&header("bastion-link")).cloned(),
        };
        let Some(link) = link.filter(|link| link.over().is_none()) else {
            stream.write_all(b"HTTP/1.1 410 Gone\r\ncontent-length: 0\r\n\r\n").await.unwrap();
            return;
        };
        stream.write_all(b"HTTP/1.1 101 Switching Protocols\r\n\r\n").await.unwrap();
        let _gone = link.carry(stream).await;
    }

    #[expect(clippy::disallowed_methods, reason = "ends with its link")]
    fn begin(&self, secret: String) -> Link {
        let link = Link::acceptor();
        self.links.lock().unwrap().insert(secret, link.clone());
        let serving = link.clone();
        tokio::spawn(async move {
            let mut streams = JoinSet::new();
            let serve = async {
                while let Some((stream, target)) = serving.accept().await {
                    streams.spawn(serve(stream, target));
                }
            };
            tokio::join!(serving.keep_time(), serve);
        });
        link
    }
}

async fn serve(stream: crate::link::Stream, target: String) {
    let (mut read, mut write) = tokio::io::split(stream);
    if target == "echo" {
        let _gone = tokio::io::copy(&mut read, &mut write).await;
    } else {
        let mut hash = Sha256::new();
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(length @ 1..) = read.read(&mut buffer).await {
            hash.update(&buffer[..length]);
        }
        let _gone = write.write_all(&hash.finalize()).await;
    }
    let _gone = write.shutdown().await;
}

struct World {
    sessions: Sessions,
    relay: Arc<Relay>,
    first: Tunnel,
    lanes: Lanes,
    servers: JoinSet<()>,
}

impl World {
    async fn new(wanted: usize) -> Self {
        let gateway = Gateway::new(Options::default(), Arc::new(|_| Ok(())));
        let mut servers = JoinSet::new();
        let relay = Arc::new(Relay::default());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        servers.spawn(Arc::clone(&relay).serve(listener));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = gateway.router();
        servers.spawn(async move { axum::serve(listener, router).await.unwrap() });
        let (count, refuses) = Default::default();
        let sessions = Sessions { gateway, address, port, count, goes_on: false, refuses };
        let (first, _) = Sessions { goes_on: true, ..sessions.clone() }.tunnel().await.unwrap();
        let lanes = Lanes::begin(first.clone(), wanted, Arc::new(()), Arc::new(sessions.clone()));
        lanes.known(PATIENCE).await;
        Self { sessions, relay, first, lanes, servers }
    }

    async fn all_joined(&self) {
        let mut states = self.lanes.lanes();
        let joined = states.wait_for(|state| state.open == state.wanted);
        tokio::time::timeout(PATIENCE, joined).await.expect("lanes are missing").unwrap();
    }

    /// A local client of a target, and what became of carrying it.
    async fn client(&self, target: &'static str) -> (TcpStream, tokio::task::JoinHandle<Result<(), CarryError>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (served, _) = listener.accept().await.unwrap();
        let lanes = self.lanes.clone();
        #[expect(clippy::disallowed_methods, reason = "it is awaited")]
        let carried = tokio::spawn(async move { client::carry(&lanes, target, Engine::Tcp, served).await });
        (client, carried)
    }

    async fn end(mut self) {
        self.lanes.close().await;
        self.first.close().await;
        assert!(self.sessions.gateway.session_ids().len() <= 1, "{:?}", self.sessions.gateway.session_ids());
        self.servers.shutdown().await;
    }
}

fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut out = Vec::with_capacity(length);
    while out.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend_from_slice(&state.to_le_bytes());
    }
    out
}

/// Sends all of it, half-closes, reads the answer to its end.
async fn exchange(client: TcpStream, sent: &[u8]) -> Vec<u8> {
    let (mut read, mut write) = client.into_split();
    let mut answer = Vec::new();
    let both = async {
        tokio::join!(
            async {
                write.write_all(sent).await.unwrap();
                write.shutdown().await.unwrap();
            },
            async { read.read_to_end(&mut answer).await.unwrap() }
        )
    };
    tokio::time::timeout(PATIENCE, both).await.expect("stuck");
    answer
}

#[tokio::test]
async fn four_sessions_carry_one_link_and_end_with_it() {
    let world = World::new(4).await;
    world.all_joined().await;
    assert_eq!(world.sessions.gateway.session_ids().len(), 4);
    let mut clients = JoinSet::new();
    for n in 0..20_u8 {
        let (client, carried) = world.client("echo").await;
        clients.spawn(async move {
            let sent = vec![n; 30_000];
            assert!(exchange(client, &sent).await == sent);
            carried.await.unwrap().unwrap();
        });
    }
    while let Some(done) = clients.join_next().await {
        done.unwrap();
    }
    let (_, link) = world.lanes.stats();
    assert_eq!((link.sent, link.received), (600_000, 600_000));
    assert!(link.received_packed < 100_000, "{link:?}");
    assert_eq!(world.lanes.clients(), 0);
    world.end().await;
}

#[tokio::test]
async fn bytes_are_the_same_under_every_fault_of_the_way() {
    let odds = Odds { drop: 0.01, duplicate: 0.02, reorder: 0.02, corrupt: 0.0 };
    let path = Path { data: odds, ack: odds, jitter_ms: 2, ..Path::default() };
    for knobs in [
        Knobs { up: path.clone(), down: path.clone(), ..Knobs::default() },
        Knobs { cut_client_every_ms: Some(700), when_down: WhenDown::Drop, ..Knobs::default() },
        Knobs { bye_after_ms: Some(600), cut_agent_every_ms: Some(900), ..Knobs::default() },
    ] {
        let world = World::new(3).await;
        world.all_joined().await;
        world.sessions.gateway.faults().set_all(knobs).unwrap();
        let sent = noise(1_500_000);
        let (client, carried) = world.client("echo").await;
        let answer = exchange(client, &sent).await;
        assert!(Sha256::digest(&answer) == Sha256::digest(&sent), "{} of {} bytes", answer.len(), sent.len());
        carried.await.unwrap().unwrap();
        world.end().await;
    }
}

#[tokio::test]
async fn a_session_that_ends_in_mid_transfer_costs_no_byte_and_is_replaced() {
    let world = World::new(3).await;
    world.all_joined().await;
    let sent = noise(3_000_000);
    let (client, carried) = world.client("echo").await;
    let breaking = async {
        for lane in [2, 0, 1] {
            tokio::time::sleep(Duration::from_millis(200)).await;
            let mut ids = world.sessions.gateway.session_ids();
            ids.sort();
            assert!(world.sessions.gateway.terminate_session(&ids[lane.min(ids.len() - 1)]));
        }
    };
    let (answer, ()) = tokio::join!(exchange(client, &sent), breaking);
    assert!(answer == sent);
    carried.await.unwrap().unwrap();
    world.all_joined().await;
    world.end().await;
}

#[tokio::test]
async fn what_a_client_hashes_arrives_whole_while_a_lane_is_silent() {
    let world = World::new(2).await;
    world.all_joined().await;
    let mut ids = world.sessions.gateway.session_ids();
    ids.sort();
    let sent = noise(2_000_000);
    let (client, carried) = world.client("hash").await;
    world.sessions.gateway.faults().happen(Some(&ids[1]), Event::FreezeClient).unwrap();
    let answer = exchange(client, &sent).await;
    assert_eq!(answer, Sha256::digest(&sent).to_vec());
    carried.await.unwrap().unwrap();
    world.end().await;
}

#[tokio::test]
async fn a_client_that_waits_for_the_only_lane_gets_it_as_soon_as_it_is_there() {
    let world = World::new(1).await;
    world.all_joined().await;
    world.relay.held.send_replace(true);
    assert!(world.sessions.gateway.terminate_session(&world.sessions.gateway.session_ids()[0]));
    // The session has its successor, the link its lane not yet.
    world.relay.waiting.subscribe().wait_for(|waiting| *waiting == 1).await.unwrap();
    world.lanes.state().wait_for(|state| *state == State::Connected).await.unwrap();
    let mut ready = Box::pin(world.lanes.ready());
    assert!(futures_util::poll!(&mut ready).is_pending());
    world.relay.held.send_replace(false);
    assert!(ready.await.unwrap().is_some());
    world.end().await;
}

#[tokio::test]
async fn the_relay_hears_of_the_end_at_once_also_while_lanes_are_opening() {
    // Several times: within a lane's task it is chance what is looked at first.
    for wanted in [1, 1, 1, 1, 1, 3, 3] {
        let world = World::new(wanted).await;
        let (mut client, carried) = world.client("echo").await;
        client.write_all(b"hello").await.unwrap();
        client.read_exact(&mut [0; 5]).await.unwrap();
        let link = world.relay.links.lock().unwrap().values().next().unwrap().clone();
        world.lanes.close().await;
        world.first.close().await;
        link.emptied().await;
        // Otherwise it would keep the link and its connections for somebody who comes back.
        assert_eq!(link.over().as_deref(), Some("the other side has closed the link"));
        carried.await.unwrap().unwrap_err();
        world.end().await;
    }
}

#[tokio::test]
async fn fewer_lanes_do_and_the_reason_is_known() {
    let world = World::new(4).await;
    world.all_joined().await;
    world.sessions.refuses.store(true, Ordering::SeqCst);
    let mut ids = world.sessions.gateway.session_ids();
    ids.sort();
    assert!(world.sessions.gateway.terminate_session(&ids[3]));
    let mut states = world.lanes.lanes();
    let told = states.wait_for(|state| state.open == 3 && state.problem.is_some());
    let problem = tokio::time::timeout(PATIENCE, told).await.expect("nobody noticed").unwrap().problem.clone();
    assert!(problem.as_ref().unwrap().ends_with("of 4 cannot be opened: too many sessions"), "{problem:?}");
    let (client, carried) = world.client("echo").await;
    assert_eq!(exchange(client, b"hello").await, b"hello");
    carried.await.unwrap().unwrap();
    world.sessions.refuses.store(false, Ordering::SeqCst);
    world.all_joined().await;
    assert_eq!(world.lanes.lanes().borrow().problem, None);
    world.end().await;
}

#[tokio::test]
async fn a_relay_that_has_lost_the_link_ends_its_streams_and_gets_a_new_one() {
    let world = World::new(2).await;
    world.all_joined().await;
    let (mut client, carried) = world.client("echo").await;
    client.write_all(b"hello").await.unwrap();
    let mut answer = [0; 5];
    client.read_exact(&mut answer).await.unwrap();
    // As after a restart: nobody says goodbye.
    world.relay.links.lock().unwrap().drain().for_each(|(_, link)| link.close());
    let error = tokio::time::timeout(PATIENCE, carried).await.unwrap().unwrap().unwrap_err();
    assert!(matches!(error, CarryError::Tunnel(_)), "{error}");
    // Not an end: a reset.
    assert!(client.read(&mut answer).await.is_err());
    let (client, carried) = world.client("echo").await;
    assert_eq!(exchange(client, b"again").await, b"again");
    carried.await.unwrap().unwrap();
    world.end().await;
}
