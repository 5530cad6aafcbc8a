//! The sandbox's gateway and agents and a small relay, all in this process, for tests of lanes.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use axum::serve::ListenerExt as _;
use bastion_sandbox::gateway::{Gateway, Options, SessionSpec, Snapshot, Started};
use bastion_wire::end::ResetReason;
use bastion_wire::memory::Memory;
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::client::CarryError;
use super::lanes::{LaneError, Lanes, Opener};
use super::*;
use crate::api::{HEADER_LANE, HEADER_LINK, HEADER_TARGET, LaneIntent, Upgrade};
use crate::link::Link;
use crate::link::end::Resets;
use crate::link::plain::Plain;
use crate::types::Engine;

pub(super) const PATIENCE: Duration = Duration::from_secs(120);

/// Sessions of one gateway, to one port.
#[derive(Clone)]
pub(super) struct Sessions {
    pub(super) gateway: Gateway,
    config: Config,
    address: std::net::SocketAddr,
    port: u16,
    count: Arc<AtomicUsize>,
    /// A session that is over is followed by another.
    goes_on: bool,
    /// The session that goes on.
    last: Arc<Mutex<Option<String>>>,
    pub(super) refuses: Arc<AtomicBool>,
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
            session_id: Self::id(number),
            target: "ecs:c_t_r".to_owned(),
            agent_host: IpAddr::V4(Ipv4Addr::LOCALHOST),
            port: self.port,
        }))
    }

    fn id(number: usize) -> String {
        format!("alice@example.com-{number:016}")
    }

    /// What each session has seen, also those that are over.
    pub(super) fn snapshots(&self) -> Vec<Snapshot> {
        let started = 0..self.count.load(Ordering::SeqCst);
        started.filter_map(|number| self.gateway.snapshot(&Self::id(number))).collect()
    }

    /// The id of the session that is started next.
    pub(super) fn next_id(&self) -> String {
        Self::id(self.count.load(Ordering::SeqCst))
    }

    async fn tunnel(&self) -> Result<(Tunnel, String), LaneError> {
        if self.refuses.load(Ordering::SeqCst) {
            return Err(ControlError("too many sessions".to_owned()).into());
        }
        let grant = Self::start(self);
        let id = grant.session_id.clone();
        if self.goes_on {
            *self.last.lock().unwrap() = Some(id.clone());
        }
        match Tunnel::open(self.config.clone(), grant, Arc::new(self.clone()), CancellationToken::new()).await {
            Ok(tunnel) => Ok((tunnel, id)),
            Err(error) => {
                let _over_already = self.gateway.terminate_session(&id);
                Err(error.into())
            }
        }
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
        Box::pin(async move {
            let grant = self.goes_on.then(|| Self::start(self)).ok_or_else(gone)?;
            let last = self.last.lock().unwrap().replace(grant.session_id.clone());
            let _over_already = last.is_some_and(|last| self.gateway.terminate_session(&last));
            Ok(grant)
        })
    }

    fn resume<'a>(&'a self, session_id: &'a str) -> BoxFuture<'a, Result<Option<SessionGrant>, ControlError>> {
        Box::pin(async move { Ok(self.gateway.resume_session(session_id).map(|started| self.grant(started))) })
    }
}

impl Opener for Sessions {
    fn open(&self) -> BoxFuture<'_, Result<(Tunnel, String), LaneError>> {
        Box::pin(self.tunnel())
    }

    fn end<'a>(&'a self, session_id: &'a str) -> BoxFuture<'a, ()> {
        Box::pin(async {
            let _over_already = self.gateway.terminate_session(session_id);
        })
    }
}

/// Counts the proofs that were asked for.
#[derive(Default)]
pub(super) struct Proofs(pub(super) AtomicUsize);

impl Pass for Proofs {
    fn token(&self) -> Option<SecretString> {
        None
    }

    fn renew<'a>(&'a self, _refused: Option<&'a SecretString>) -> BoxFuture<'a, Result<(), ControlError>> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Box::pin(std::future::ready(Ok(())))
    }
}

/// Joins lanes to links, as the relay does, or serves the plain way. Its targets: `echo`; `hash` answers with the SHA-256
/// of what came; `sums` echoes as many bytes as the first eight say, and adds the SHA-256 of what came;
/// `turns` does so once all has come; `tired` as `sums`, with rests; `deaf` reads nothing; `rude` goes at the end without a word; `shy` echoes once
/// nobody has to prove anything any more; `last` says something and is reset by its database, `unserved` is refused with a
/// reason.
#[derive(Default)]
pub(super) struct Relay {
    /// It knows no ends of connections.
    pub(super) old: AtomicBool,
    pub(super) links: Mutex<HashMap<String, Link>>,
    /// Nobody is answered while this is set.
    pub(super) held: watch::Sender<bool>,
    /// Those who are not answered.
    pub(super) waiting: watch::Sender<usize>,
    /// So many proofs `shy` still wants.
    pub(super) wanted: Arc<AtomicUsize>,
    pub(super) rest: Arc<Rest>,
}

/// Of the target `tired`.
#[derive(Default)]
pub(super) struct Rest {
    /// It reads nothing while this is set.
    pub(super) wished: watch::Sender<bool>,
    /// It reads nothing now.
    pub(super) now: watch::Sender<bool>,
    /// So many bytes it has read.
    pub(super) read: AtomicUsize,
}

impl Relay {
    async fn serve(self: Arc<Self>, listener: TcpListener) {
        let mut tasks = JoinSet::new();
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            stream.set_nodelay(true).unwrap();
            tasks.spawn(Arc::clone(&self).upgrade(stream));
        }
    }

    async fn upgrade(self: Arc<Self>, mut stream: TcpStream) {
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
        let target = header(HEADER_TARGET);
        if header("Upgrade") == Upgrade::Connection.token() && self.old.load(Ordering::SeqCst) {
            stream.write_all(b"HTTP/1.1 426 Upgrade Required\r\ncontent-length: 0\r\n\r\n").await.unwrap();
            return;
        }
        if !target.is_empty() {
            stream.write_all(SWITCHING).await.unwrap();
            return if header("Upgrade") == Upgrade::Connection.token() {
                serve(Plain::new(stream, b""), target, Arc::clone(&self.rest)).await;
            } else {
                serve(stream, target, Arc::clone(&self.rest)).await;
            };
        }
        let link = if header(HEADER_LANE) == LaneIntent::New.as_str() {
            Some(self.begin(header(HEADER_LINK)))
        } else {
            self.links.lock().unwrap().get(&header(HEADER_LINK)).cloned()
        };
        let Some(link) = link.filter(|link| link.over().is_none()) else {
            stream.write_all(b"HTTP/1.1 410 Gone\r\ncontent-length: 0\r\n\r\n").await.unwrap();
            return;
        };
        stream.write_all(SWITCHING).await.unwrap();
        let _gone = link.carry(stream).await;
    }

    #[expect(clippy::disallowed_methods, reason = "ends with its link")]
    fn begin(&self, secret: String) -> Link {
        let link = Link::acceptor(Memory::relay());
        self.links.lock().unwrap().insert(secret, link.clone());
        let (serving, wanted, rest) = (link.clone(), Arc::clone(&self.wanted), Arc::clone(&self.rest));
        tokio::spawn(async move {
            let mut streams = JoinSet::new();
            let serve = async {
                let want = || wanted.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
                while let Some((stream, target)) = serving.accept().await {
                    if target == "shy" && want().is_ok() {
                        stream.reset(&ResetReason::ProofRequired("sign another login").to_string());
                        continue;
                    }
                    streams.spawn(serve(stream, target, Arc::clone(&rest)));
                }
            };
            tokio::join!(serving.keep_time(), serve);
        });
        link
    }
}

/// What `last` says: an ErrorResponse of PostgreSQL, and a packet of MySQL.
pub(super) const LAST: &[u8] = b"E\0\0\0\x05\0";

const SWITCHING: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\n\r\n";

async fn serve(mut stream: impl AsyncRead + AsyncWrite + Resets + Unpin, target: String, rest: Arc<Rest>) {
    let why = match target.as_str() {
        "last" => ResetReason::Database("so").to_string(),
        "unserved" => "nothing listens there".to_owned(),
        _ => String::new(),
    };
    if !why.is_empty() {
        if target == "last" {
            stream.write_all(LAST).await.unwrap();
        }
        return std::future::poll_fn(|context| stream.poll_reset(context, &why)).await;
    }
    let (mut read, mut write) = tokio::io::split(stream);
    match target.as_str() {
        "deaf" => return std::future::pending().await,
        "rude" => {
            let _gone = tokio::io::copy(&mut read, &mut tokio::io::sink()).await;
            return;
        }
        "echo" | "shy" => drop(tokio::io::copy(&mut read, &mut write).await),
        "hash" => drop(hash(&mut read, &mut write, u64::MAX, false, None).await),
        "turns" => {
            let Ok(length) = read.read_u64().await else { return };
            let mut all = vec![0; usize::try_from(length).unwrap()];
            if read.read_exact(&mut all).await.is_ok() {
                let _gone = write.write_all(&all).await;
                let _gone = write.write_all(&Sha256::digest(&all)).await;
            }
        }
        _ => {
            let Ok(length) = read.read_u64().await else { return };
            let rest = (target == "tired").then_some(&*rest);
            drop(hash(&mut read, &mut write, length, true, rest).await);
        }
    }
    let _gone = write.shutdown().await;
}

/// Reads so many bytes or to the end, with rests if there are any, answers with what came if it `echoes`, and then with its
/// SHA-256.
async fn hash(
    read: &mut (impl AsyncRead + Unpin),
    write: &mut (impl AsyncWrite + Unpin),
    length: u64,
    echoes: bool,
    rest: Option<&Rest>,
) -> std::io::Result<()> {
    let mut hash = Sha256::new();
    let mut read = read.take(length);
    let mut buffer = vec![0; 64 * 1024];
    loop {
        if let Some(rest) = rest
            && *rest.wished.borrow()
        {
            rest.now.send_replace(true);
            let mut wished = rest.wished.subscribe();
            // The sender lives in the relay, so this cannot fail.
            drop(wished.wait_for(|wished| !wished).await);
            rest.now.send_replace(false);
        }
        match read.read(&mut buffer).await? {
            0 => break,
            length => {
                if let Some(rest) = rest {
                    rest.read.fetch_add(length, Ordering::Relaxed);
                }
                hash.update(&buffer[..length]);
                if echoes {
                    write.write_all(&buffer[..length]).await?;
                    write.flush().await?;
                }
            }
        }
    }
    write.write_all(&hash.finalize()).await
}

pub(super) struct World {
    pub(super) sessions: Sessions,
    pub(super) relay: Arc<Relay>,
    pub(super) first: Tunnel,
    pub(super) lanes: Lanes,
    pub(super) proofs: Arc<Proofs>,
    servers: JoinSet<()>,
}

impl World {
    pub(super) async fn new(wanted: usize) -> Self {
        Self::with(wanted, Options::default()).await
    }

    /// With 0 lanes the plain way.
    pub(super) async fn with(wanted: usize, options: Options) -> Self {
        Self::of(wanted, options, Config::default()).await
    }

    pub(super) async fn of(wanted: usize, options: Options, config: Config) -> Self {
        let gateway = Gateway::new(options, Arc::new(|_| Ok(())));
        let mut servers = JoinSet::new();
        let relay = Arc::new(Relay::default());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        servers.spawn(Arc::clone(&relay).serve(listener));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = gateway.router();
        let quick = |stream: &mut TcpStream| stream.set_nodelay(true).unwrap();
        servers.spawn(async move { axum::serve(listener.tap_io(quick), router).await.unwrap() });
        let (count, refuses, last) = Default::default();
        let sessions = Sessions { gateway, config, address, port, count, goes_on: false, last, refuses };
        let (first, _) = Sessions { goes_on: true, ..sessions.clone() }.tunnel().await.unwrap();
        let proofs = Arc::new(Proofs::default());
        let pass = Arc::clone(&proofs) as Arc<dyn Pass>;
        let lanes = Lanes::begin(first.clone(), wanted, pass, Arc::new(sessions.clone()));
        lanes.known(PATIENCE).await;
        Self { sessions, relay, first, lanes, proofs, servers }
    }

    pub(super) async fn all_joined(&self) {
        let mut states = self.lanes.lanes();
        let joined = states.wait_for(|state| state.open == state.wanted);
        tokio::time::timeout(PATIENCE, joined).await.expect("lanes are missing").unwrap();
    }

    /// A local client of a target, and what became of carrying it.
    pub(super) async fn client(
        &self,
        target: &'static str,
    ) -> (TcpStream, tokio::task::JoinHandle<Result<(), CarryError>>) {
        self.client_of(Engine::Tcp, target).await
    }

    pub(super) async fn client_of(
        &self,
        engine: Engine,
        target: &'static str,
    ) -> (TcpStream, tokio::task::JoinHandle<Result<(), CarryError>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (served, _) = listener.accept().await.unwrap();
        let lanes = self.lanes.clone();
        #[expect(clippy::disallowed_methods, reason = "it is awaited")]
        let carried = tokio::spawn(async move { client::carry(&lanes, target, engine, served).await });
        (client, carried)
    }

    pub(super) async fn end(mut self) {
        self.lanes.close().await;
        self.first.close().await;
        assert!(self.sessions.gateway.session_ids().len() <= 1, "{:?}", self.sessions.gateway.session_ids());
        self.servers.shutdown().await;
    }
}

pub(super) fn noise(length: usize) -> Vec<u8> {
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
pub(super) async fn exchange(client: TcpStream, sent: &[u8]) -> Vec<u8> {
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
