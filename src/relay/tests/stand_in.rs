//! A database under the test's control, as far as a login goes: PostgreSQL inside TLS, and MySQL's greeting.

use std::sync::Mutex;

use bastion_wire::pg::message::{self, ErrorFields};
use bastion_wire::pg::parameters::READ_ONLY;
use bastion_wire::pg::startup::{self, Opening, Startup};
use bytes::{BufMut as _, BytesMut};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::*;

/// Where it lets the relay wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// Before it answers the first bytes, or greets.
    Greeting,
    Tls,
    Login,
}

/// How it behaves.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Habits {
    /// It is paused, and needs so long at this stage.
    pub(super) wakes: Option<(Stage, Duration)>,
    /// And then it goes on being silent.
    pub(super) never: bool,
    /// It refuses the read-only parameter with this SQLSTATE and text.
    pub(super) refuses: Option<(&'static str, &'static str)>,
    /// It refuses the statement in its place.
    pub(super) refuses_statement: bool,
}

impl Habits {
    /// Time passes at once, but only here: nothing waits for a thread meanwhile.
    async fn at(self, stage: Stage) {
        if let Some((_, wait)) = self.wakes.filter(|(at, _)| *at == stage) {
            tokio::time::pause();
            tokio::time::sleep(wait).await;
            tokio::time::resume();
            if self.never {
                std::future::pending::<()>().await;
            }
        }
    }
}

/// See the module. It ends with the runtime of the test.
pub(super) struct StandIn {
    pub(super) port: u16,
    pub(super) ca_file: PathBuf,
    /// The startup packet of each login.
    pub(super) startups: Arc<Mutex<Vec<Startup>>>,
    pub(super) statements: Arc<Mutex<Vec<String>>>,
}

impl StandIn {
    pub(super) async fn start(folder: &Path, engine: Engine, host: &str, habits: Habits) -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = rcgen::CertificateParams::new(vec![host.to_owned()]).unwrap().self_signed(&key).unwrap();
        let ca_file = folder.join("stand-in.pem");
        std::fs::write(&ca_file, certificate.pem()).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stand_in = Self {
            port: listener.local_addr().unwrap().port(),
            ca_file,
            startups: Arc::default(),
            statements: Arc::default(),
        };
        let tls = rustls::ServerConfig::builder_with_provider(tls::provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![CertificateDer::from_pem_slice(certificate.pem().as_bytes()).unwrap()],
                PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes()).unwrap(),
            )
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(tls));
        let (startups, statements) = (Arc::clone(&stand_in.startups), Arc::clone(&stand_in.statements));
        #[expect(clippy::disallowed_methods, reason = "ends with the test")]
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, startups, statements) = (acceptor.clone(), startups.clone(), statements.clone());
                let serving = async move {
                    match engine {
                        Engine::Mysql => greet(stream, habits).await,
                        _ => serve(stream, &acceptor, habits, &startups, &statements).await,
                    }
                };
                tokio::spawn(async move { drop(serving.await) });
            }
        });
        stand_in
    }
}

/// MySQL: what it says first is that it has no room, which is enough to see that it was waited for.
async fn greet(mut stream: TcpStream, habits: Habits) -> std::io::Result<()> {
    habits.at(Stage::Greeting).await;
    stream.write_all(b"\x17\0\0\0\xff\x10\x04Too many connections").await?;
    stream.shutdown().await
}

async fn serve(
    mut stream: TcpStream,
    acceptor: &TlsAcceptor,
    habits: Habits,
    startups: &Mutex<Vec<Startup>>,
    statements: &Mutex<Vec<String>>,
) -> std::io::Result<()> {
    stream.read_exact(&mut [0; 8]).await?;
    habits.at(Stage::Greeting).await;
    stream.write_all(b"S").await?;
    habits.at(Stage::Tls).await;
    let mut stream = acceptor.accept(stream).await?;
    let mut input = BytesMut::new();
    let startup = loop {
        match startup::decode(&mut input).unwrap() {
            Some(Opening::Startup(startup)) => break startup,
            Some(Opening::Cancel(_)) => return stream.shutdown().await,
            Some(other) => panic!("{other:?}"),
            None => assert!(stream.read_buf(&mut input).await? > 0, "no startup packet"),
        }
    };
    let by_parameter = startup.parameter(READ_ONLY).is_some();
    startups.lock().unwrap().push(startup);
    habits.at(Stage::Login).await;
    let mut out = BytesMut::new();
    if let Some((code, text)) = habits.refuses.filter(|_| by_parameter) {
        error(code, text, &mut out);
        stream.write_all(&out).await?;
        return stream.shutdown().await;
    }
    message::encode(b'R', &[0; 4], &mut out);
    message::encode(b'S', b"server_version\x0015.0\0", &mut out);
    message::encode(b'K', &[7; 8], &mut out);
    out.put_slice(READY);
    stream.write_all(&out).await?;
    loop {
        let Some(message) = message::decode(&mut input).unwrap() else {
            if stream.read_buf(&mut input).await? == 0 {
                return stream.shutdown().await;
            }
            continue;
        };
        if message.tag == b'X' {
            return stream.shutdown().await;
        }
        let statement = String::from_utf8(message.body.to_vec()).unwrap();
        let mut out = BytesMut::new();
        match habits.refuses_statement && statement.contains(READ_ONLY) {
            true => error("42501", "permission denied", &mut out),
            false => message::encode(b'C', b"SET\0", &mut out),
        }
        statements.lock().unwrap().push(statement);
        out.put_slice(READY);
        stream.write_all(&out).await?;
    }
}

const READY: &[u8] = b"Z\0\0\0\x05I";

fn error(code: &str, text: &str, out: &mut BytesMut) {
    ErrorFields { severity: "FATAL".into(), code: code.into(), message: text.into(), ..ErrorFields::default() }
        .encode(out);
}
