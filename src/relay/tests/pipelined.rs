//! A MySQL client that sends commands before it has read the answers to those before.

use bastion_wire::mysql::capability::{DEPRECATE_EOF, NEEDED};
use bastion_wire::mysql::door::SWITCH;
use bastion_wire::mysql::packet::{self, OK, Packet};
use bastion_wire::mysql::response::{Head, Response};
use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;

pub(super) struct Raw {
    pub(super) stream: TcpStream,
    pub(super) buffer: BytesMut,
}

impl Raw {
    /// A client that agrees to `capabilities` besides those that all have, and is let in.
    pub(super) async fn login(listen: Ipv4Addr, capabilities: u32) -> Self {
        let mut client = Self { stream: TcpStream::connect((listen, 3306)).await.unwrap(), buffer: BytesMut::new() };
        client.read().await;
        let plugin = Bytes::from_static(b"mysql_native_password");
        let capabilities = NEEDED | capabilities;
        let head = Head { capabilities, max_packet: 1 << 24, charset: 45, reserved: [0; 23] };
        let (user, answer) = (Bytes::from_static(b"anyone"), Bytes::new());
        let login = Response { head, user, answer, database: None, plugin: Some(plugin), attributes: Vec::new() };
        let mut payload = BytesMut::new();
        login.encode(&mut payload);
        client.write(&[(1, &payload)]).await;
        while client.read().await.payload.first() != Some(&OK) {}
        client
    }

    /// Number and first byte of each packet up to the relay's own, after which the change of the user is gone through.
    async fn changed(&mut self) -> Vec<(u8, u8)> {
        let mut heard = Vec::new();
        while heard.last() != Some(&(1, SWITCH)) {
            let Packet { sequence, payload } = self.read().await;
            heard.push((sequence, payload.first().copied().unwrap()));
        }
        heard.pop();
        self.write(&[(2, &[])]).await;
        let Packet { sequence, payload } = self.read().await;
        assert_eq!((sequence, payload.first()), (3, Some(&OK)));
        heard
    }

    pub(super) async fn read(&mut self) -> Packet {
        loop {
            if let Some(packet) = packet::decode(&mut self.buffer).unwrap() {
                return packet;
            }
            assert!(self.stream.read_buf(&mut self.buffer).await.unwrap() > 0, "closed");
        }
    }

    /// A statement without rows, and its answer.
    pub(super) async fn ask(&mut self, sql: &str) {
        self.write(&[(0, &[b"\x03", sql.as_bytes()].concat())]).await;
        assert_eq!(self.read().await.payload.first(), Some(&OK), "{sql}");
    }

    pub(super) async fn write(&mut self, packets: &[(u8, &[u8])]) {
        let mut out = BytesMut::new();
        for (sequence, payload) in packets {
            packet::encode(*sequence, payload, &mut out);
        }
        self.stream.write_all(&out).await.unwrap();
    }
}

pub(super) const CHANGE: &[u8] = b"\x11root\0\0\0\x2d\0mysql_native_password\0";

#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_the_user_waits_for_the_answers_before_it() {
    let folder = tempfile::tempdir().unwrap();
    let database = MariaDb::start(folder.path(), &verifier(folder.path()), Flaws::default()).await.unwrap();
    let listen = Ipv4Addr::new(127, 63, 100, 9);
    let users = ["native_user"];
    let config = config_for(Engine::Mysql, mariadb::HOST, database.port, &database.ca_file, listen, &users);
    let (drain, serving) = serve(config, mariadb::PASSWORD).await;
    let mut client = Raw::login(listen, 0).await;
    for _ in 0..2 {
        client.write(&[(0, b"\x03select 'first'"), (0, b"\x03do sleep(0.3)"), (0, CHANGE)]).await;
        // One column, its end, one row, its end; then the OK of the other statement, and only then the relay itself.
        assert_eq!(client.changed().await, [(1, 1), (2, 3), (3, 0xfe), (4, 5), (5, 0xfe), (1, OK)]);
    }
    // With EOF packets behind definitions, and without.
    let bare = Raw::login(listen, DEPRECATE_EOF).await;
    let prepared = [vec![(1, OK), (2, 3), (3, 0xfe), (4, 3), (5, 3), (6, 0xfe)], vec![(1, OK), (2, 3), (3, 3), (4, 3)]];
    for (mut client, prepared) in [client, bare].into_iter().zip(prepared) {
        client.write(&[(0, b"\x09"), (0, CHANGE)]).await;
        assert_eq!(client.changed().await, [(1, b'U')]);
        client.write(&[(0, b"\x16select ?, 2"), (0, CHANGE)]).await;
        assert_eq!(client.changed().await, prepared);
        client.write(&[(0, b"\x09"), (0, b"\x16do 1"), (0, b"\x09"), (0, CHANGE)]).await;
        assert_eq!(client.changed().await, [(1, b'U'), (1, OK), (1, b'U')]);
    }
    drain.cancel();
    serving.await.unwrap();
    database.stop().await;
}
