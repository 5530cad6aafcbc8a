//! An HTTP proxy as companies have them: with a password, with a CA of its own that looks into TLS, or with a mood. Whatever
//! is asked for, it leads to one address of this machine.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::{CancellationToken, DropGuard};

/// How the proxy treats what comes.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// `user:password` that must be shown.
    pub credentials: Option<&'static str>,
    /// The status line that everything gets.
    pub answer: Option<&'static str>,
    /// Connections are taken and nothing is said.
    pub hangs: bool,
    /// It answers TLS itself, with a certificate of its own CA, and passes the plain bytes on.
    pub inspects: bool,
    /// It is spoken to inside TLS, with a certificate of the same CA for 127.0.0.1.
    pub tls: bool,
}

/// A running proxy; ends when dropped.
pub struct Proxy {
    address: SocketAddr,
    ca: String,
    seen: Arc<Mutex<Vec<String>>>,
    _stop: DropGuard,
}

struct Inner {
    options: Options,
    to: SocketAddr,
    issuer: Issuer<'static, KeyPair>,
    seen: Arc<Mutex<Vec<String>>>,
}

impl Proxy {
    /// Starts a proxy that leads to `to`.
    ///
    /// # Errors
    /// When there is no port.
    pub async fn start(options: Options, to: SocketAddr) -> anyhow::Result<Self> {
        let mut parameters = CertificateParams::new(Vec::new())?;
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate()?;
        let ca = parameters.self_signed(&key)?.pem();
        let issuer = Issuer::new(parameters, key);
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let seen = Arc::<Mutex<Vec<String>>>::default();
        let inner = Arc::new(Inner { options, to, issuer, seen: Arc::clone(&seen) });
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        #[expect(clippy::disallowed_methods, reason = "ends with its owner, who cancels `stop`")]
        tokio::spawn(async move {
            let serve = async {
                while let Ok((stream, _)) = listener.accept().await {
                    let inner = Arc::clone(&inner);
                    let stopped = stopped.clone();
                    tokio::spawn(async move {
                        tokio::select! {
                            () = stopped.cancelled() => {}
                            // What goes wrong shows at the client.
                            _ = inner.accept(stream) => {}
                        }
                    });
                }
            };
            tokio::select! {
                () = stopped.cancelled() => {}
                () = serve => {}
            }
        });
        Ok(Self { address, ca, seen, _stop: stop.drop_guard() })
    }

    /// `127.0.0.1:PORT`.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its CA in PEM.
    pub fn ca(&self) -> &str {
        &self.ca
    }

    /// The request lines that came.
    pub fn seen(&self) -> Vec<String> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Inner {
    async fn accept(&self, client: TcpStream) -> anyhow::Result<()> {
        match self.options.tls {
            true => self.serve(self.acceptor("127.0.0.1")?.accept(client).await?).await,
            false => self.serve(client).await,
        }
    }

    async fn serve(&self, mut client: impl AsyncRead + AsyncWrite + Unpin) -> anyhow::Result<()> {
        let head = head(&mut client).await?;
        let (line, headers) = head.split_once("\r\n").context("no request")?;
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).push(line.to_owned());
        if self.options.hangs {
            std::future::pending::<()>().await;
        }
        if let Some(answer) = self.options.answer {
            client.write_all(format!("{answer}\r\nContent-Length: 0\r\n\r\n").as_bytes()).await?;
            return Ok(());
        }
        let shown = headers.lines().find_map(|header| {
            let (name, value) = header.split_once(": ")?;
            name.eq_ignore_ascii_case("proxy-authorization").then_some(value)
        });
        let wanted = self.options.credentials.map(|credentials| format!("Basic {}", BASE64.encode(credentials)));
        if wanted.is_some() && shown != wanted.as_deref() {
            let answer =
                "HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic\r\nContent-Length: 0\r\n\r\n";
            client.write_all(answer.as_bytes()).await?;
            return Ok(());
        }
        let mut words = line.split(' ');
        let (Some(method), Some(target)) = (words.next(), words.next()) else { bail!("no request line") };
        let mut server = TcpStream::connect(self.to).await?;
        if method != "CONNECT" {
            let (_, rest) = target.split_once("://").context("not a URL")?;
            let path = rest.find('/').map_or("/", |at| &rest[at..]);
            server.write_all(format!("{method} {path} HTTP/1.1\r\n{headers}").as_bytes()).await?;
            tokio::io::copy_bidirectional(&mut client, &mut server).await?;
            return Ok(());
        }
        client.write_all(b"HTTP/1.1 200 Connection established\r\nVia: 1.1 sandbox\r\n\r\n").await?;
        if self.options.inspects {
            let host = target.rsplit_once(':').map_or(target, |(host, _)| host);
            let mut client = self.acceptor(host)?.accept(client).await?;
            tokio::io::copy_bidirectional(&mut client, &mut server).await?;
        } else {
            tokio::io::copy_bidirectional(&mut client, &mut server).await?;
        }
        Ok(())
    }

    fn acceptor(&self, host: &str) -> anyhow::Result<TlsAcceptor> {
        let key = KeyPair::generate()?;
        let certificate = CertificateParams::new(vec![host.to_owned()])?.signed_by(&key, &self.issuer)?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)?;
        Ok(TlsAcceptor::from(Arc::new(config)))
    }
}

/// A request up to the empty line.
async fn head(client: &mut (impl AsyncRead + Unpin)) -> anyhow::Result<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(client.read_u8().await?);
    }
    Ok(String::from_utf8(head)?)
}
