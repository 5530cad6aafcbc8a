//! A database with a good certificate that asks clients for their files.

use std::io::Write;
use std::sync::Mutex;

use bastion_wire::mysql::capability::{LOCAL_FILES, NEEDED, SSL};
use bastion_wire::mysql::greeting::Greeting;
use bastion_wire::mysql::packet::{self, ERR, ErrPacket, OK, Packet};
use bytes::{Bytes, BytesMut};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::pipelined::Raw;
use super::*;

const HOST: &str = "events.example.com";

/// Lines of the audit log.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

async fn read(stream: &mut (impl AsyncRead + Unpin), buffer: &mut BytesMut) -> Packet {
    loop {
        if let Some(packet) = packet::decode(buffer).unwrap() {
            return packet;
        }
        assert!(stream.read_buf(buffer).await.unwrap() > 0, "closed");
    }
}

fn packed(sequence: u8, payload: &[u8]) -> Vec<u8> {
    let mut out = BytesMut::new();
    packet::encode(sequence, payload, &mut out);
    out.to_vec()
}

/// Lets one client in and answers its first command with `answer`, in these pieces.
async fn database(listener: TcpListener, acceptor: TlsAcceptor, answer: [Vec<u8>; 2]) {
    let (mut stream, _) = listener.accept().await.unwrap();
    let greeting = Greeting {
        version: Bytes::from_static(b"9.7.4"),
        connection_id: 7,
        scramble: Bytes::from_static(b"abcdefghijklmnopqrst"),
        capabilities: NEEDED | SSL | LOCAL_FILES | 1,
        charset: 255,
        status: 2,
        reserved: [0; 10],
        plugin: Bytes::from_static(b"mysql_native_password"),
    };
    let mut payload = BytesMut::new();
    greeting.encode(&mut payload);
    stream.write_all(&packed(0, &payload)).await.unwrap();
    let mut buffer = BytesMut::new();
    // The request for TLS and no byte more: the handshake may be there already.
    stream.read_exact(&mut [0; 36]).await.unwrap();
    let mut stream = acceptor.accept(stream).await.unwrap();
    let login = read(&mut stream, &mut buffer).await;
    stream.write_all(&packed(login.sequence + 1, &[OK, 0, 0, 2, 0, 0, 0])).await.unwrap();
    read(&mut stream, &mut buffer).await;
    for piece in answer {
        stream.write_all(&piece).await.unwrap();
        stream.flush().await.unwrap();
        tokio::task::yield_now().await;
    }
    // Whatever comes is not the file.
    let mut rest = buffer.to_vec();
    let _closed = stream.read_to_end(&mut rest).await;
    assert!(rest.is_empty(), "{rest:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_gets_no_file_that_its_client_does_not_load() {
    let folder = tempfile::tempdir().unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::new(vec![HOST.into()]).unwrap().self_signed(&key).unwrap();
    let ca_file = folder.path().join("ca.pem");
    std::fs::write(&ca_file, certificate.pem()).unwrap();
    let chain = vec![CertificateDer::from_pem_slice(certificate.pem().as_bytes()).unwrap()];
    let key = PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let tls = Arc::new(tls.with_no_client_auth().with_single_cert(chain, key).unwrap());
    let load = b"\x03load data local infile '/tmp/rows.csv' into table t";
    let request = packed(1, b"\xfb/etc/passwd");
    let more = [packed(1, &[OK, 0, 0, 10, 0, 0, 0]), packed(2, b"\xfb/etc/passwd")].concat();
    for (number, (local_infile, command, answer, cut)) in [
        (false, &b"\x03select 1"[..], &request, 5),
        (false, load, &request, 4),
        (true, b"\x03select 1", &request, 9),
        (true, load, &request, request.len()),
        // Behind a good result.
        (true, load, &more, 13),
    ]
    .into_iter()
    .enumerate()
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let listen = Ipv4Addr::new(127, 63, 101, u8::try_from(number).unwrap() + 1);
        let port = listener.local_addr().unwrap().port();
        let mut config = config_for(Engine::Mysql, HOST, port, &ca_file, listen, &["anyone"]);
        config.targets[0].local_infile = local_infile;
        let (log, drain) = (Log::default(), CancellationToken::new());
        let bound = bind_with(config, drain.clone(), CancellationToken::new(), log.clone(), |target| {
            Ok(Logins::Shared(Arc::new(Cache::new(Source::Fixed(Fixed::new(&target.name, "password"))))))
        });
        let relay = bound.await.unwrap();
        let (first, second) = answer.split_at(cut);
        let asks = database(listener, TlsAcceptor::from(Arc::clone(&tls)), [first.to_vec(), second.to_vec()]);
        let client = async {
            let mut client = Raw::login(listen, LOCAL_FILES | 1).await;
            client.write(&[(0, command)]).await;
            let mut said = client.read().await;
            if said.payload.first() == Some(&OK) {
                said = client.read().await;
            }
            // It has the number that the client expects, and nothing comes behind it.
            assert_eq!((said.payload.first(), usize::from(said.sequence)), (Some(&ERR), if cut == 13 { 2 } else { 1 }));
            let mut rest = Vec::new();
            client.stream.read_to_end(&mut rest).await.unwrap();
            assert!(rest.is_empty() && client.buffer.is_empty());
            drain.cancel();
            ErrPacket::parse(&said.payload)
        };
        let (_, (), said) = tokio::join!(relay.serve(), asks, client);
        assert_eq!((said.number, said.sqlstate.as_deref()), (1158, Some("08S01")));
        assert!(said.message.starts_with("bastion: target anyone asked for the file \""), "{}", said.message);
        let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
        let records: Vec<serde_json::Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let record = records.iter().find(|record| record["event"] == "local_infile").expect(&log);
        assert_eq!((&record["outcome"], &record["bytes"]), (&"refused".into(), &serde_json::Value::Null));
        assert!("/etc/passwd".starts_with(record["file"].as_str().unwrap()), "{log}");
        let closed = records.iter().find(|record| record["event"] == "connection_closed").expect(&log);
        assert_eq!(closed["ended_by"], "upstream", "{log}");
    }
}
