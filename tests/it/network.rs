//! A laptop whose network goes away and comes back as another one. The launcher and its clients run in a network namespace
//! of their own, which a virtual cable joins to a second one; from there a Unix socket leads to the sandbox. So nothing of
//! this machine's network is touched, and nothing but the right to make namespaces is needed.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Stdio;

use bastion_sandbox::postgres::Flaws;
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::net::{TcpSocket, UnixListener};
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::support::{PATIENCE, World, finish, sandbox_program};
use crate::terminal::{Terminal, psql};
use crate::up::{Up, bastion, ports};

/// Where AWS is. The launcher speaks without TLS to 127.0.0.0/8 only, so this part of it is not the laptop's own.
const AWS: Ipv4Addr = Ipv4Addr::new(127, 99, 0, 1);
/// So that little is on its way when the network goes: what was is repeated at ten messages a second by the agent.
const BUFFER: u32 = 64 * 1024;

/// A network namespace, for as long as a program runs in it.
struct Namespace {
    program: Child,
}

impl Namespace {
    /// Runs a program in a new one, by `unshare`, until it has said a line.
    async fn start(mut unshare: Command, program: &[&str]) -> Self {
        unshare.arg("--net").args(program).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut program =
            unshare.kill_on_drop(true).spawn().expect("there is no unshare or nsenter: install util-linux");
        let mut output = BufReader::new(program.stdout.take().unwrap());
        let mut line = String::new();
        tokio::time::timeout(PATIENCE, output.read_line(&mut line)).await.expect("no namespace comes").unwrap();
        if line.is_empty() {
            let mut said = String::new();
            program.stderr.take().unwrap().read_to_string(&mut said).await.unwrap();
            panic!(
                "this machine lets nobody make a network namespace, see namespace_trouble in scripts/lib.sh: {said}"
            );
        }
        Self { program }
    }

    fn pid(&self) -> String {
        self.program.id().unwrap().to_string()
    }

    /// The same program, in the namespace, with no environment but its own.
    fn enter(&self, command: &Command) -> Command {
        let (command, mut inside) = (command.as_std(), Command::new("nsenter"));
        inside.args(["--target", &self.pid(), "--net"]).args(as_ourselves()).arg("--").arg(command.get_program());
        inside.args(command.get_args()).env_clear().kill_on_drop(true);
        inside.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        if let Some(folder) = command.get_current_dir() {
            inside.current_dir(folder);
        }
        inside
    }

    async fn ip(&self, arguments: &str) {
        let mut ip = Command::new("ip");
        ip.args(arguments.split(' '));
        let (code, _, err) = finish(self.enter(&ip)).await;
        assert_eq!(code, 0, "ip {arguments}: {err}");
    }
}

/// Only root may make a network namespace outside of a user namespace.
fn as_ourselves() -> &'static [&'static str] {
    if rustix::process::geteuid().is_root() { &[] } else { &["--user", "--preserve-credentials"] }
}

/// The two ends of a cable, and the way from the far one to the sandbox.
struct Laptop {
    near: Namespace,
    far: Namespace,
    _way: JoinSet<()>,
}

impl Laptop {
    async fn start(world: &World) -> Self {
        let mut unshare = Command::new("unshare");
        if !rustix::process::geteuid().is_root() {
            unshare.args(["--user", "--map-root-user"]);
        }
        let near = Namespace::start(unshare, &["sh", "-c", "echo here; exec cat"]).await;
        let (socket, program) = (world.folder.path().join("way.sock"), sandbox_program());
        let mut way = JoinSet::new();
        let endpoint: SocketAddr = world.sandbox.endpoint().strip_prefix("http://").unwrap().parse().unwrap();
        way.spawn(pass_on(UnixListener::bind(&socket).unwrap(), endpoint));
        // Of the same owner, or nobody may join the two.
        let mut unshare = Command::new("nsenter");
        unshare.args(["--target", &near.pid()]).args(as_ourselves()).args(["--net", "--", "unshare"]);
        let text = |path: &Path| path.to_str().unwrap().to_owned();
        let listen = format!("0.0.0.0:{}", endpoint.port());
        let forward = [&text(&program), "forward", "--listen", &listen, "--to", &text(&socket)];
        let far = Namespace::start(unshare, &forward).await;
        // Else all of 127.0.0.0/8 is its own.
        near.ip("link set lo up").await;
        near.ip("address add 127.0.0.1/32 dev lo").await;
        near.ip("address delete 127.0.0.1/8 dev lo").await;
        near.ip(&format!("link add lan0 type veth peer name wan0 netns {}", far.pid())).await;
        far.ip("link set lo up").await;
        far.ip("link set wan0 up").await;
        for end in [&near, &far] {
            let mut allow = Command::new("sh");
            allow.args(["-c", "echo 1 > /proc/sys/net/ipv4/conf/all/route_localnet"]);
            let (code, _, err) = finish(end.enter(&allow)).await;
            assert_eq!(code, 0, "{err}");
        }
        Self { near, far, _way: way }
    }

    /// Another network, so another address.
    async fn join(&self, number: u8) {
        self.far.ip(&format!("address add 10.77.{number}.1/24 dev wan0")).await;
        self.near.ip(&format!("address add 10.77.{number}.2/24 dev lan0")).await;
        self.near.ip("link set lan0 up").await;
        self.near.ip(&format!("route add default via 10.77.{number}.1")).await;
    }

    /// Packets are lost, nobody is told.
    async fn leave(&self) {
        self.near.ip("link set lan0 down").await;
        self.near.ip("address flush dev lan0").await;
        self.far.ip("address flush dev wan0").await;
    }
}

async fn pass_on(listener: UnixListener, endpoint: SocketAddr) {
    let mut connections = JoinSet::new();
    loop {
        let (mut client, _) = listener.accept().await.unwrap();
        connections.spawn(async move {
            let socket = TcpSocket::new_v4().unwrap();
            socket.set_recv_buffer_size(BUFFER).unwrap();
            let mut server = socket.connect(endpoint).await.unwrap();
            server.set_nodelay(true).unwrap();
            // Either end may be gone.
            let _ended = tokio::io::copy_bidirectional(&mut client, &mut server).await;
        });
    }
}

/// A large result, whose bytes are known: how many have come, and the SHA-256 of all.
struct Download {
    count: watch::Receiver<usize>,
    digest: JoinSet<[u8; 32]>,
    psql: Child,
}

const ROWS: usize = 100_000;

impl Download {
    fn start(mut psql: Command) -> Self {
        let sql = format!(
            "copy (select n, encode(sha256(n::text::bytea), 'hex') from generate_series(1, {ROWS}) n) to stdout"
        );
        psql.args(["-c", &sql]).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut psql = psql.spawn().unwrap();
        let (sender, count) = watch::channel(0);
        let mut output = psql.stdout.take().unwrap();
        let mut digest = JoinSet::new();
        digest.spawn(async move {
            let (mut hasher, mut buffer) = (Sha256::new(), vec![0; 64 * 1024]);
            loop {
                let length = output.read(&mut buffer).await.unwrap();
                if length == 0 {
                    return hasher.finalize().into();
                }
                hasher.update(&buffer[..length]);
                sender.send_modify(|count| *count += length);
            }
        });
        Self { count, digest, psql }
    }

    /// Waits until so much more has come.
    async fn goes_on(&mut self, bytes: usize) {
        let wanted = *self.count.borrow() + bytes;
        let more = self.count.wait_for(|count| *count >= wanted);
        tokio::time::timeout(3 * PATIENCE, more).await.expect("the download is stuck").expect("it has ended");
    }

    async fn end(mut self) {
        let digest = self.digest.join_next();
        let digest = tokio::time::timeout(4 * PATIENCE, digest).await.expect("the download is stuck").unwrap().unwrap();
        let status = self.psql.wait().await.unwrap();
        let mut said = String::new();
        self.psql.stderr.take().unwrap().read_to_string(&mut said).await.unwrap();
        assert!(status.success(), "{said}");
        let mut wanted = Sha256::new();
        for n in 1..=ROWS {
            let row = Sha256::digest(n.to_string());
            let row: String = row.iter().map(|byte| format!("{byte:02x}")).collect();
            wanted.update(format!("{n}\t{row}\n"));
        }
        assert!(digest[..] == wanted.finalize()[..], "the bytes are wrong");
    }
}

#[tokio::test]
async fn connections_outlive_a_change_of_the_network() {
    let world = World::start_with(Flaws::default(), |config| config.listen = AWS).await;
    let laptop = Laptop::start(&world).await;
    laptop.join(1).await;
    let mut command = bastion(&world, "alice", &["up", "demo", "--json"]);
    command.args(ports());
    let mut up = Up::of(laptop.near.enter(&command)).await;
    up.event(|event| event["event"] == "lanes" && event["open"] == 4).await;
    let orders = laptop.near.enter(&psql("127.0.0.1", up.port("orders")));
    let mut idle = Terminal::of(orders);
    assert_eq!(idle.ask("begin; select 1;").await, "1");
    let mut download = Download::start(laptop.near.enter(&psql("127.0.0.1", up.port("orders"))));
    // None for a while, with something under way in every session.
    download.goes_on(500_000).await;
    laptop.leave().await;
    up.event(|event| event["state"] == "reconnecting").await;
    laptop.join(2).await;
    up.event(|event| event["state"] == "connected").await;
    // Another one at once.
    download.goes_on(500_000).await;
    laptop.leave().await;
    laptop.join(3).await;
    download.goes_on(500_000).await;
    assert_eq!(idle.ask("commit; select 2;").await, "2");
    download.end().await;
    let mut again = Terminal::of(laptop.near.enter(&psql("127.0.0.1", up.port("orders"))));
    assert_eq!(again.ask("select 3;").await, "3");
    drop((idle, again));
    assert_eq!(up.end().await.0, Some(0));
    drop(laptop);
    world.stop().await;
}
