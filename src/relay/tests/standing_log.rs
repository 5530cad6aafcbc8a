//! An audit log that takes nothing more, and connections that are cut meanwhile.

use std::sync::mpsc::{Receiver, Sender, channel};

use bastion_wire::mysql::packet::OK;
use parking_lot::Mutex;
use serde_json::Value;
use tokio::io::AsyncReadExt as _;

use super::pipelined::{CHANGE, Raw};
use super::*;

/// Stands still from the first line with `STOP` on, until nobody can tell it to go on any more.
struct Log {
    written: Arc<Mutex<Vec<u8>>>,
    stands: Sender<()>,
    go: Receiver<()>,
}

const STOP: &str = "stop here";
/// An error packet with ER_SERVER_SHUTDOWN (1053).
const SHUTDOWN: [u8; 3] = [0xff, 0x1d, 0x04];
/// `COM_PING`.
const PING: u8 = 0x0e;

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if bytes.windows(STOP.len()).any(|window| window == STOP.as_bytes()) {
            let _gone = self.stands.send(());
            let _gone = self.go.recv();
        }
        self.written.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// A relay with such a log, before a database.
struct Standing {
    folder: tempfile::TempDir,
    database: MariaDb,
    shared: Arc<RelayState>,
    serving: tokio::task::JoinHandle<Ended>,
    drain: CancellationToken,
    now: CancellationToken,
    written: Arc<Mutex<Vec<u8>>>,
    is_standing: Receiver<()>,
    /// Dropped: it goes on.
    go: Sender<()>,
}

impl Standing {
    async fn start(listen: Ipv4Addr) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let database = MariaDb::start(folder.path(), &verifier(folder.path()), Flaws::default()).await.unwrap();
        let users = ["native_user"];
        let mut config = config_for(Engine::Mysql, mariadb::HOST, database.port, &database.ca_file, listen, &users);
        config.audit.statements = true;
        let written = Arc::<Mutex<Vec<u8>>>::default();
        let ((stands, is_standing), (go, may_go)) = (channel(), channel());
        let log = Log { written: Arc::clone(&written), stands, go: may_go };
        let (drain, now) = (CancellationToken::new(), CancellationToken::new());
        let relay = bind_with(config, drain.clone(), now.clone(), log, |target| {
            Ok(Logins::Shared(Arc::new(Cache::new(Source::Fixed(Fixed::new(&target.name, mariadb::PASSWORD))))))
        });
        let relay = relay.await.unwrap();
        let shared = Arc::clone(&relay.shared);
        #[expect(clippy::disallowed_methods, reason = "joined by the test")]
        let serving = tokio::spawn(relay.serve());
        Self { folder, database, shared, serving, drain, now, written, is_standing, go }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_does_not_wait_for_the_record_of_a_command_and_no_record_is_lost() {
    let listen = Ipv4Addr::new(127, 63, 100, 10);
    let Standing { folder: _folder, database, shared, serving, drain, now, written, is_standing, go } =
        Standing::start(listen).await;
    let mut client = Raw::login(listen, 0).await;
    let mut other = Raw::login(listen, 0).await;
    let mut asked = vec![format!("do '{STOP}'")];
    other.ask(&asked[0]).await;
    tokio::task::spawn_blocking(move || is_standing.recv().unwrap()).await.unwrap();
    while !shared.audit.is_full() {
        asked.push(format!("do '{:08000}'", asked.len()));
        other.ask(&asked[asked.len() - 1]).await;
    }
    // The first has no record. Once it is answered, the relay waits for that of the change of the user.
    client.write(&[(0, &[PING]), (0, CHANGE)]).await;
    assert_eq!(client.read().await.payload.first(), Some(&OK));
    now.cancel();
    drain.cancel();
    let told = tokio::time::timeout(Duration::from_secs(60), client.read()).await.expect("the log holds the cut up");
    assert!(told.payload.starts_with(&SHUTDOWN), "{:?}", String::from_utf8_lossy(&told.payload));
    assert_eq!(client.stream.read_buf(&mut client.buffer).await.unwrap(), 0);
    assert!(client.buffer.is_empty());
    drop(go);
    assert_eq!(serving.await.unwrap(), Ended::Signal);

    drop(shared);
    let text = String::from_utf8(written.lock().clone()).unwrap();
    let records: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of = |event: &str| records.iter().filter(|record| record["event"] == event).collect::<Vec<_>>();
    let sql: Vec<&str> = of("statement").iter().filter_map(|record| record["sql"].as_str()).collect();
    assert_eq!(sql, asked);
    assert_eq!(of("statement").len(), sql.len(), "the change of the user was not gone through");
    assert_eq!(of("connection_opened").len(), 2);
    let closed = of("connection_closed");
    assert_eq!(closed.len(), 2);
    assert!(closed.iter().all(|record| record["ended_by"] == "shutdown"), "{closed:?}");
    database.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_statement_whose_record_has_no_memory_ends_its_session_with_the_limit() {
    let listen = Ipv4Addr::new(127, 63, 100, 11);
    let Standing { folder: _folder, database, shared, serving, drain, now, written, is_standing, go } =
        Standing::start(listen).await;
    let mut clients = Vec::new();
    for _ in 0..4 {
        clients.push(Raw::login(listen, 0).await);
    }
    let [stopper, asking, changing, patient] = &mut clients[..] else { panic!("there are four") };
    stopper.ask(&format!("do '{STOP}'")).await;
    tokio::task::spawn_blocking(move || is_standing.recv().unwrap()).await.unwrap();
    while !shared.audit.is_full() {
        stopper.ask(&format!("do '{:08000}'", 0)).await;
    }
    let rest = shared.memory.records.take(shared.memory.records.left()).unwrap();
    // A short record is the connection's own.
    patient.write(&[(0, &[b"\x03".as_slice(), b"do 1"].concat())]).await;
    let long = [b"\x03".as_slice(), &[b'x'; 2000]].concat();
    asking.write(&[(0, &long)]).await;
    changing.write(&[(0, &long), (0, CHANGE)]).await;
    for client in [asking, changing] {
        let told = tokio::time::timeout(Duration::from_secs(5), client.read()).await.expect("it waits for the log");
        let told = String::from_utf8_lossy(&told.payload).into_owned();
        assert!(told.contains("the memory for records that wait for the audit log is used up: 8192 KiB"), "{told}");
        assert_eq!(client.stream.read_buf(&mut client.buffer).await.unwrap(), 0);
    }
    drop(rest);
    drop(go);
    assert_eq!(patient.read().await.payload.first(), Some(&OK));
    now.cancel();
    drain.cancel();
    assert_eq!(serving.await.unwrap(), Ended::Signal);
    drop(shared);
    let text = String::from_utf8(written.lock().clone()).unwrap();
    let ends: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let by_audit = |end: &&Value| end["event"] == "connection_closed" && end["ended_by"] == "audit";
    assert_eq!(ends.iter().filter(by_audit).count(), 2);
    assert!(!text.contains("xxxx"), "it is recorded and did not run");
    database.stop().await;
}
