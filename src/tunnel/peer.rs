//! Who connects to a local port. On Linux the kernel tells the owner of the client's socket in `/proc/net/tcp` and `tcp6`
//! (proc(5)): other users of the machine do not come in. Root does: it may look into this process anyway, and what
//! forwards ports into a container or a virtual machine often runs as root. Elsewhere everybody comes in.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Seek as _};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio::sync::oneshot;

#[cfg(target_os = "linux")]
const TABLES: [&str; 2] = ["/proc/self/net/tcp", "/proc/self/net/tcp6"];
const ROOT: u32 = 0;
/// A line can be missed while other connections come and go in its part of the table.
const READS: usize = 3;

/// Why a client is not served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refused {
    #[error("it came from user {0} of this machine")]
    OtherUser(u32),
    /// It may have left already: its socket is nobody's then.
    #[error("nobody knows any more which user it came from")]
    Unknown,
}

/// Both ends of a connection, the client's first.
type Ends = (SocketAddr, SocketAddr);

struct Waiting {
    ends: Ends,
    answer: oneshot::Sender<Result<(), Refused>>,
}

/// Looks clients up. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Peers {
    /// `None`: this system does not tell.
    user: Option<u32>,
    tables: Arc<Mutex<Tables>>,
    waiting: Arc<Mutex<Vec<Waiting>>>,
    /// Held by whoever reads the tables, for all that wait by then.
    turn: Arc<tokio::sync::Mutex<()>>,
}

impl Peers {
    /// For the user of this process; `port` is one on which it listens.
    pub(crate) fn new(port: u16) -> Self {
        let mut tables = Tables::open();
        let user = known_user(&mut tables, port);
        Self { user, tables: Arc::new(Mutex::new(tables)), waiting: Arc::default(), turn: Arc::default() }
    }

    /// Whether this system tells who a client is.
    pub(crate) fn are_known(&self) -> bool {
        self.user.is_some()
    }

    /// Lets a client in if it is of the same user. The tables are read beside the runtime, once for all clients that have
    /// come meanwhile.
    pub(crate) async fn admit(&self, client: &TcpStream) -> Result<(), Refused> {
        let Some(user) = self.user else { return Ok(()) };
        let (Ok(theirs), Ok(ours)) = (client.peer_addr(), client.local_addr()) else { return Err(Refused::Unknown) };
        let (answer, mut answered) = oneshot::channel();
        self.waiting().push(Waiting { ends: (theirs, ours), answer });
        let turn = self.turn.lock().await;
        if let Ok(verdict) = answered.try_recv() {
            return verdict;
        }
        let all = std::mem::take(&mut *self.waiting());
        let tables = Arc::clone(&self.tables);
        let reading = tokio::task::spawn_blocking(move || {
            let found = {
                let mut tables = tables.lock();
                tables.owners(all.iter().map(|waiting| waiting.ends))
            };
            for Waiting { ends, answer } in all {
                // A client that is not waited for any more needs no answer.
                let _gone = answer.send(verdict(found.get(&ends).copied(), user));
            }
        });
        if reading.await.is_err() {
            return Err(Refused::Unknown);
        }
        drop(turn);
        answered.await.unwrap_or(Err(Refused::Unknown))
    }

    fn waiting(&self) -> parking_lot::MutexGuard<'_, Vec<Waiting>> {
        self.waiting.lock()
    }
}

/// The tables of the system. They stay open: at the limit of open files, too, it has to be known who a client is.
struct Tables(Vec<File>);

impl Tables {
    /// Those that there are: a system without IPv6 has no table of it.
    #[cfg(target_os = "linux")]
    fn open() -> Self {
        Self(TABLES.iter().filter_map(|table| File::open(table).ok()).collect())
    }

    #[cfg(not(target_os = "linux"))]
    fn open() -> Self {
        Self(Vec::new())
    }

    /// The owners of the clients' sockets, as far as they are found.
    fn owners(&mut self, all: impl Iterator<Item = Ends>) -> HashMap<Ends, u32> {
        let mut wanted: HashMap<Ends, Ends> = all.map(|ends| ((unmapped(ends.0), unmapped(ends.1)), ends)).collect();
        let mut found = HashMap::new();
        for _ in 0..READS {
            for table in &mut self.0 {
                // One that cannot be read has nobody in it.
                let _unreadable = rows(table, |row| {
                    // A socket without an inode has been closed: what it says about its owner is not true.
                    if row.inode != 0
                        && let Some(ends) = wanted.remove(&row.ends)
                    {
                        found.insert(ends, row.user);
                    }
                    wanted.is_empty()
                });
            }
            if wanted.is_empty() {
                break;
            }
        }
        found
    }
}

/// The user of this process, if the tables of the system are good: they have this process's own listener on `port`.
#[cfg(target_os = "linux")]
fn known_user(tables: &mut Tables, port: u16) -> Option<u32> {
    let user = rustix::process::geteuid().as_raw();
    let is_own = |row: &Row| row.ends.0.port() == port && row.ends.1.port() == 0 && row.user == user;
    let tells = tables.0.iter_mut().any(|table| rows(table, |row| is_own(&row)).unwrap_or(false));
    tells.then_some(user)
}

#[cfg(not(target_os = "linux"))]
fn known_user(_tables: &mut Tables, _port: u16) -> Option<u32> {
    None
}

fn verdict(owner: Option<u32>, user: u32) -> Result<(), Refused> {
    match owner {
        Some(owner) if owner == user || owner == ROOT => Ok(()),
        Some(other) => Err(Refused::OtherUser(other)),
        None => Err(Refused::Unknown),
    }
}

/// A client may use an IPv6 socket for an IPv4 address.
fn unmapped(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// One socket: its own and the other end, its owner, and the inode that it is open as.
#[derive(Debug, PartialEq, Eq)]
struct Row {
    ends: Ends,
    user: u32,
    inode: u64,
}

/// Hands the rows of a table to `seen` until that has seen enough; whether it has.
fn rows(table: &mut File, mut seen: impl FnMut(Row) -> bool) -> io::Result<bool> {
    // From the start on the kernel writes a new table.
    table.rewind()?;
    let mut lines = BufReader::with_capacity(1 << 16, table);
    let mut line = String::new();
    while lines.read_line(&mut line)? > 0 {
        if Row::parse(&line).is_some_and(&mut seen) {
            return Ok(true);
        }
        line.clear();
    }
    Ok(false)
}

impl Row {
    /// `sl local_address rem_address st tx:rx tr:tm retrnsmt uid timeout inode …`; the first line has names.
    fn parse(line: &str) -> Option<Self> {
        let mut fields = line.split_ascii_whitespace();
        let (own, other) = (address(fields.nth(1)?)?, address(fields.next()?)?);
        let user = fields.nth(4)?.parse().ok()?;
        let inode = fields.nth(1)?.parse().ok()?;
        Some(Self { ends: (own, other), user, inode })
    }
}

/// `0100007F:3039`: words of 32 bits in the order of this machine, and the port.
fn address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let mut bytes = [0_u8; 16];
    let words = ip.len() / 8;
    if !ip.is_ascii() || !matches!(ip.len(), 8 | 32) {
        return None;
    }
    for (n, word) in bytes.chunks_exact_mut(4).take(words).enumerate() {
        let digits = ip.get(n * 8..n * 8 + 8)?;
        word.copy_from_slice(&u32::from_str_radix(digits, 16).ok()?.to_ne_bytes());
    }
    let ip = match bytes {
        [a, b, c, d, ..] if words == 1 => IpAddr::from([a, b, c, d]),
        bytes => IpAddr::from(bytes),
    };
    Some(SocketAddr::new(ip.to_canonical(), u16::from_str_radix(port, 16).ok()?))
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[test]
    #[cfg(target_endian = "little")]
    fn rows_are_read_and_anything_else_is_none() {
        let line = "   3: 0100007F:D431 0100007F:3D38 01 00000000:00000000 00:00000000 00000000  1000        0 123456 1 x 20\n";
        let ends = ("127.0.0.1:54321".parse().unwrap(), "127.0.0.1:15672".parse().unwrap());
        assert_eq!(Row::parse(line), Some(Row { ends, user: 1000, inode: 123_456 }));
        let mapped = line
            .replace("0100007F:D431", "0000000000000000FFFF00000100007F:D431")
            .replace("0100007F:3D38", "0000000000000000FFFF00000100007F:3D38");
        assert_eq!(Row::parse(&mapped), Row::parse(line));
        let v6 = "00000000000000000000000001000000:D431";
        assert_eq!(address(v6), Some("[::1]:54321".parse().unwrap()));
        let header =
            "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n";
        let cut = &line[..60];
        for other in ["", header, cut, &line.replace("0100007F", "0100007"), &line.replace("0100007F", "éé0000")] {
            assert_eq!(Row::parse(other), None, "{other}");
        }
    }

    async fn pair(address: &str) -> (TcpListener, TcpStream, TcpStream) {
        let listener = TcpListener::bind((address, 0)).await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap());
        let (accepted, client) = tokio::join!(listener.accept(), client);
        (listener, accepted.unwrap().0, client.unwrap())
    }

    #[tokio::test]
    async fn clients_of_this_user_come_in_and_others_do_not() {
        let me = rustix::process::geteuid().as_raw();
        for address in ["127.0.0.1", "::1"] {
            let (listener, accepted, client) = pair(address).await;
            let peers = Peers::new(listener.local_addr().unwrap().port());
            assert!(peers.are_known());
            assert_eq!(peers.admit(&accepted).await, Ok(()));
            // To somebody else's port this user is the other one, unless it is root.
            let theirs = Peers { user: Some(me + 1), ..peers.clone() }.admit(&accepted).await;
            assert_eq!(theirs, if me == ROOT { Ok(()) } else { Err(Refused::OtherUser(me)) });
            drop(client);
        }
        for (owner, wanted) in [
            (Some(7), Ok(())),
            (Some(ROOT), Ok(())),
            (Some(8), Err(Refused::OtherUser(8))),
            (None, Err(Refused::Unknown)),
        ] {
            assert_eq!(verdict(owner, 7), wanted);
        }
    }

    #[tokio::test]
    async fn an_ipv6_socket_with_an_ipv4_address_is_found() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let socket = tokio::net::TcpSocket::new_v6().unwrap();
        let port = listener.local_addr().unwrap().port();
        let client = socket.connect(format!("[::ffff:127.0.0.1]:{port}").parse().unwrap());
        let (accepted, client) = tokio::join!(listener.accept(), client);
        assert_eq!(Peers::new(port).admit(&accepted.unwrap().0).await, Ok(()));
        drop(client.unwrap());
    }

    #[tokio::test]
    async fn one_that_has_left_is_nobody_and_not_root() {
        let (listener, accepted, client) = pair("127.0.0.1").await;
        let peers = Peers::new(listener.local_addr().unwrap().port());
        // What it has sent would still be carried.
        client.try_write(b"select 1").unwrap();
        drop(client);
        assert_eq!(peers.admit(&accepted).await, Err(Refused::Unknown));
    }

    #[tokio::test]
    async fn many_at_once_are_all_answered() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let peers = Peers::new(address.port());
        let (mut clients, mut checks) = (Vec::new(), tokio::task::JoinSet::new());
        for _ in 0..100 {
            let (accepted, client) = tokio::join!(listener.accept(), TcpStream::connect(address));
            clients.push(client.unwrap());
            let (peers, accepted) = (peers.clone(), accepted.unwrap().0);
            checks.spawn(async move { peers.admit(&accepted).await });
        }
        assert!(checks.join_all().await.into_iter().all(|verdict| verdict == Ok(())));
    }
}
