//! TLS between client and relay: without asking for it, and how it ends. A `read_to_end` of rustls is an error unless the
//! other end has said close_notify.

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::stand_in::{Habits, StandIn};
use super::*;

const HOST: &str = "orders.abc123.ap-northeast-1.rds.amazonaws.com";
const SSL_REQUEST: &[u8] = &[0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];
const STARTUP: &[u8] = b"\0\0\0\x15\0\x03\0\0user\0anyone\0\0";
const TERMINATE: &[u8] = b"X\0\0\0\x04";
const READY: &[u8] = b"Z\0\0\0\x05I";

/// A relay with a certificate before a stand-in.
struct World {
    folder: tempfile::TempDir,
    stand_in: StandIn,
    listen: Ipv4Addr,
    drain: CancellationToken,
    now: CancellationToken,
    serving: tokio::task::JoinHandle<Ended>,
}

impl World {
    async fn start(last: u8, habits: Habits) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let stand_in = StandIn::start(folder.path(), Engine::Postgres, HOST, habits).await;
        let listen = Ipv4Addr::new(127, 63, 102, last);
        let users = ["db_read"];
        let mut config = config_for(Engine::Postgres, HOST, stand_in.port, &stand_in.ca_file, listen, &users);
        config.targets[0].read_only = true;
        config.client_tls = Some(client_certificate(folder.path()));
        let (drain, now) = (CancellationToken::new(), CancellationToken::new());
        let relay = bind_with(config, drain.clone(), now.clone(), std::io::sink(), |target| {
            Ok(Logins::Shared(Arc::new(Cache::new(Source::Fixed(Fixed::new(&target.name, postgres::PASSWORD))))))
        });
        let relay = relay.await.unwrap();
        #[expect(clippy::disallowed_methods, reason = "joined by the test")]
        let serving = tokio::spawn(relay.serve());
        Self { folder, stand_in, listen, drain, now, serving }
    }

    /// A client inside TLS.
    async fn tls(&self, asks: bool, alpn: &[&[u8]]) -> TlsStream<TcpStream> {
        let mut stream = TcpStream::connect((self.listen, 5432)).await.unwrap();
        if asks {
            stream.write_all(SSL_REQUEST).await.unwrap();
            let mut answer = [0];
            stream.read_exact(&mut answer).await.unwrap();
            assert_eq!(answer, *b"S");
        }
        handshake(self.folder.path(), stream, alpn).await
    }

    async fn stop(self) {
        self.drain.cancel();
        self.serving.await.unwrap();
    }
}

/// TLS of a client that trusts [`client_certificate`].
async fn handshake(folder: &Path, stream: TcpStream, alpn: &[&[u8]]) -> TlsStream<TcpStream> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(folder.join("tls.pem")).unwrap()).unwrap();
    let mut config = rustls::ClientConfig::builder_with_provider(tls::provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    let name = ServerName::try_from("localhost").unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap()
}

/// What comes before the connection has ended well; an end of another kind is an error.
async fn end(stream: &mut TlsStream<TcpStream>) -> std::io::Result<Vec<u8>> {
    let mut heard = Vec::new();
    let ended = tokio::time::timeout(Duration::from_secs(60), stream.read_to_end(&mut heard)).await;
    ended.expect("it never ends").map(|_| heard)
}

async fn logged_in(stream: &mut TlsStream<TcpStream>) {
    stream.write_all(STARTUP).await.unwrap();
    let mut heard = Vec::new();
    while !heard.ends_with(READY) {
        assert!(stream.read_buf(&mut heard).await.unwrap() > 0, "{heard:?}");
    }
}

#[tokio::test]
async fn tls_without_asking_needs_the_name_of_the_protocol() {
    let world = World::start(1, Habits::default()).await;
    for (asks, alpn, served) in [
        (true, &[][..], true),
        (true, &[&b"postgresql"[..]][..], true),
        (false, &[&b"postgresql"[..]], true),
        (false, &[b"h2", b"postgresql"], true),
        (false, &[], false),
    ] {
        let mut client = world.tls(asks, alpn).await;
        // Closed after the handshake, without a word; the client may notice while it writes.
        if !served {
            assert_eq!(end(&mut client).await.unwrap(), b"", "{asks} {alpn:?}");
            continue;
        }
        logged_in(&mut client).await;
        client.write_all(TERMINATE).await.unwrap();
        assert_eq!(end(&mut client).await.unwrap(), b"", "{asks} {alpn:?}");
    }
    world.stop().await;
}

#[tokio::test]
async fn every_end_of_the_relays_own_making_is_one_inside_tls_too() {
    let world = World::start(2, Habits { refuses: Some(("53300", "too many clients")), ..Habits::default() }).await;
    // A login that the database refuses, a protocol that is not spoken, a cancel request, no startup packet.
    let cancel = [&16_u32.to_be_bytes()[..], &((1234_u32 << 16) | 5678).to_be_bytes(), &[7; 8]].concat();
    for (sent, told) in [
        (STARTUP, "too many clients"),
        (&[0, 0, 0, 8, 0, 2, 0, 0][..], "not 2.0"),
        (&cancel, ""),
        (TERMINATE, ""),
        (b"GET / HTTP/1.1\r\n\r\n", ""),
    ] {
        let mut client = world.tls(true, &[]).await;
        client.write_all(sent).await.unwrap();
        let heard = end(&mut client).await.unwrap_or_else(|error| panic!("{sent:?}: {error}"));
        let heard = String::from_utf8_lossy(&heard).into_owned();
        assert!(heard.contains(told) && heard.is_empty() == told.is_empty(), "{sent:?}: {heard}");
    }
    assert_eq!(world.stand_in.startups.lock().unwrap().len(), 1);
    world.stop().await;
}

#[tokio::test]
async fn a_session_that_the_end_of_the_relay_cuts_ends_inside_tls_too() {
    let world = World::start(3, Habits::default()).await;
    let mut client = world.tls(true, &[]).await;
    logged_in(&mut client).await;
    // One that is in the middle of its login.
    let mut early = world.tls(false, &[b"postgresql"]).await;
    early.write_all(SSL_REQUEST).await.unwrap();
    let mut answer = [0];
    early.read_exact(&mut answer).await.unwrap();
    assert_eq!(answer, *b"N");
    world.drain.cancel();
    world.now.cancel();
    let heard = end(&mut client).await.unwrap();
    assert!(String::from_utf8_lossy(&heard).contains("57P01"), "{heard:?}");
    end(&mut early).await.unwrap();
    world.serving.await.unwrap();
}

/// The database refuses the login, knows no such database, or the task stops.
#[tokio::test(flavor = "multi_thread")]
async fn every_end_of_the_relays_own_making_is_one_inside_tls_for_mysql_too() {
    let folder = tempfile::tempdir().unwrap();
    let database = MariaDb::start(folder.path(), &verifier(folder.path()), Flaws::default()).await.unwrap();
    for (last, password, name, number) in
        [(4, "S3CRET", "", 1045), (5, mariadb::PASSWORD, "nosuch", 1044), (6, mariadb::PASSWORD, "", 1053)]
    {
        let listen = Ipv4Addr::new(127, 63, 102, last);
        let users = ["native_user"];
        let mut config = config_for(Engine::Mysql, mariadb::HOST, database.port, &database.ca_file, listen, &users);
        config.client_tls = Some(client_certificate(folder.path()));
        let (drain, now) = (CancellationToken::new(), CancellationToken::new());
        let relay = bind_with(config, drain.clone(), now.clone(), std::io::sink(), |target| {
            Ok(Logins::Shared(Arc::new(Cache::new(Source::Fixed(Fixed::new(&target.name, password))))))
        });
        let relay = relay.await.unwrap();
        #[expect(clippy::disallowed_methods, reason = "joined below")]
        let serving = tokio::spawn(relay.serve());
        let mut stream = TcpStream::connect((listen, 3306)).await.unwrap();
        let mut head = [0; 4];
        stream.read_exact(&mut head).await.unwrap();
        stream.read_exact(&mut vec![0; usize::from(head[0])]).await.unwrap();
        // Protocol 4.1, plugins, TLS, a database if it is named.
        let flags = [if name.is_empty() { 0x01 } else { 0x09 }, 0xaa, 0x08, 0];
        let mut login = [&flags[..], &[0, 0, 0, 1, 45], &[0; 23]].concat();
        stream.write_all(&[&[32, 0, 0, 1][..], &login].concat()).await.unwrap();
        let mut stream = handshake(folder.path(), stream, &[]).await;
        login.extend(b"anyone\0\0");
        if !name.is_empty() {
            login.extend([name.as_bytes(), b"\0"].concat());
        }
        login.extend(b"mysql_native_password\0");
        let length = u8::try_from(login.len()).unwrap();
        stream.write_all(&[&[length, 0, 0, 2][..], &login].concat()).await.unwrap();
        if number == 1053 {
            stream.read_exact(&mut head).await.unwrap();
            let mut ok = vec![0; usize::from(head[0])];
            stream.read_exact(&mut ok).await.unwrap();
            assert_eq!(ok[0], 0, "{ok:?}");
            drain.cancel();
            now.cancel();
        }
        let heard = end(&mut stream).await.unwrap_or_else(|error| panic!("{number}: {error}"));
        let text = String::from_utf8_lossy(&heard);
        assert_eq!(heard[4..7], [&[0xff][..], &u16::to_le_bytes(number)].concat(), "{text}");
        drain.cancel();
        serving.await.unwrap();
    }
    database.stop().await;
}
