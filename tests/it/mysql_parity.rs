//! What a MySQL client gets through the relay, next to what it gets from the MariaDB itself.

use std::time::Duration;

use bastion_sandbox::mariadb::Flaws;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};

use crate::relay_mysql::{World, target};
use crate::support::PATIENCE;

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// A client that sends just what it is told.
struct Raw(Box<dyn Stream>);

const OK: u8 = 0;
const ERR: u8 = 0xff;
/// In a row.
const NULL: u8 = 0xfb;
const CHANGE_USER: u8 = 0x11;
const RESET_CONNECTION: u8 = 0x1f;
/// Protocol 4.1 with plugins; result sets have EOF packets.
const CAPABILITIES: u32 = 1 | 1 << 9 | 1 << 13 | 1 << 15 | 1 << 17 | 1 << 19 | 1 << 21;

impl Raw {
    async fn through(world: &World) -> Self {
        Self::login(TcpStream::connect((world.address, 3306)).await.unwrap(), 45).await
    }

    /// As the superuser over the socket.
    async fn directly(world: &World) -> Self {
        Self::login(UnixStream::connect(world.database.socket()).await.unwrap(), 45).await
    }

    async fn login(stream: impl Stream + 'static, collation: u8) -> Self {
        let mut client = Self(Box::new(stream));
        client.read().await;
        let head = [&CAPABILITIES.to_le_bytes()[..], &(1_u32 << 24).to_le_bytes(), &[collation], &[0; 23]].concat();
        client.write(1, &[&head, &b"root\0\0mysql_native_password\0"[..]].concat()).await;
        let answer = client.let_in().await;
        assert_eq!(answer.first(), Some(&OK), "{}", String::from_utf8_lossy(&answer));
        client
    }

    /// The last packet of a login; the password is empty.
    async fn let_in(&mut self) -> Vec<u8> {
        loop {
            let (sequence, payload) = self.read().await;
            match payload.first() {
                Some(0xfe) => self.write(sequence + 1, &[]).await,
                Some(1) => {}
                _ => return payload,
            }
        }
    }

    async fn read(&mut self) -> (u8, Vec<u8>) {
        let mut head = [0; 4];
        self.0.read_exact(&mut head).await.unwrap();
        let mut payload = vec![0; u32::from_le_bytes([head[0], head[1], head[2], 0]) as usize];
        self.0.read_exact(&mut payload).await.unwrap();
        (head[3], payload)
    }

    async fn write(&mut self, sequence: u8, payload: &[u8]) {
        let mut packet = u32::try_from(payload.len()).unwrap().to_le_bytes();
        packet[3] = sequence;
        self.0.write_all(&[&packet, payload].concat()).await.unwrap();
    }

    async fn command(&mut self, payload: &[u8]) -> Vec<u8> {
        self.write(0, payload).await;
        self.read().await.1
    }

    async fn query(&mut self, sql: &str) {
        let answer = self.command(&[b"\x03", sql.as_bytes()].concat()).await;
        assert_eq!(answer.first(), Some(&OK), "{sql}: {}", String::from_utf8_lossy(&answer));
    }

    /// The error, or nothing.
    async fn change_user(&mut self, collation: u16, database: &str) -> Option<String> {
        let front = [&[CHANGE_USER], &b"root\0\0"[..], database.as_bytes(), &[0]].concat();
        self.write(0, &[&front, &collation.to_le_bytes()[..], b"mysql_native_password\0"].concat()).await;
        let answer = self.let_in().await;
        // Status, and no warnings of statements that the client has not sent.
        assert!(answer.first() == Some(&ERR) || answer.get(5..7) == Some(&[0, 0]), "{collation} {answer:?}");
        (answer.first() == Some(&ERR)).then(|| String::from_utf8_lossy(&answer[3..]).into_owned())
    }

    /// Character sets and collation of the session, what of it has survived, its database.
    async fn state(&mut self) -> Vec<Option<String>> {
        let columns = "@@character_set_client, @@collation_connection, @@character_set_results, @left_over, database()";
        let head = self.command(format!("\x03select {columns}").as_bytes()).await;
        assert_eq!(head, [5], "{}", String::from_utf8_lossy(&head));
        for _ in 0..6 {
            self.read().await;
        }
        let row = self.read().await.1;
        self.read().await;
        let (mut values, mut rest) = (Vec::new(), row.as_slice());
        while let Some((&length, behind)) = rest.split_first() {
            let (value, behind) = behind.split_at(if length == NULL { 0 } else { length.into() });
            values.push((length != NULL).then(|| String::from_utf8_lossy(value).into_owned()));
            rest = behind;
        }
        values
    }
}

/// Numbers of collations, those of character sets that a client cannot have apart.
async fn collations(world: &World) -> (Vec<u16>, Vec<u16>) {
    let no_client = "character_set_name in ('ucs2', 'utf16', 'utf16le', 'utf32')";
    let mut found = Vec::new();
    for which in [format!("not {no_client}"), no_client.to_owned()] {
        let from = "information_schema.collation_character_set_applicability";
        let ids = world.root(&format!("select distinct id from {from} where id is not null and {which}")).await;
        found.push(ids.lines().map(|id| id.trim().parse().unwrap()).collect::<Vec<u16>>());
    }
    let none = found.pop().unwrap();
    (found.pop().unwrap(), none)
}

#[tokio::test]
async fn a_change_of_the_user_sets_every_collation_as_the_server_does() {
    let world = World::start(Flaws::default(), |_| ()).await;
    let (ids, none) = collations(&world).await;
    assert!(ids.len() > 100 && ids.contains(&224) && none.contains(&35), "{ids:?} {none:?}");
    let unknown = [0, 255, 305, 9999, u16::MAX];
    let (mut through, mut directly) = (Raw::through(&world).await, Raw::directly(&world).await);
    // With the values that the server starts with, and with others for whoever names no collation that it knows.
    for globals in ["", "set global collation_connection = utf8mb4_polish_ci, global character_set_results = latin1"] {
        world.root(globals).await;
        for id in ids.iter().chain(&unknown) {
            for client in [&mut through, &mut directly] {
                client.query("set @left_over = 1, names greek").await;
                assert_eq!(client.change_user(*id, "").await, None, "{id}");
            }
            // All but the database: without a name for it the relay leaves the session the one that it has.
            let (got, expected) = (through.state().await, directly.state().await);
            assert_eq!(got[..4], expected[..4], "{id} {globals}");
            // MariaDB remembers it for resets.
            for client in [&mut through, &mut directly] {
                client.query("set names greek").await;
                assert_eq!(client.command(&[RESET_CONNECTION]).await.first(), Some(&OK));
            }
            let (got, expected) = (through.state().await, directly.state().await);
            assert_eq!(got[..4], expected[..4], "{id} {globals}");
        }
    }
    for id in &none {
        let error = through.change_user(*id, "").await.unwrap();
        assert!(
            error.starts_with("#42000Variable 'character_set_client' can't be set to the value of"),
            "{id} {error}"
        );
    }
    // The server lets nobody fail more often than this, and lets them wait.
    for (id, database) in [(none[0], ""), (224, "no_such_database")] {
        let mut errors = Vec::new();
        for client in [&mut through, &mut directly] {
            client.query("set @left_over = 1, names greek").await;
            client.command(b"\x02scratch").await;
            errors.push(client.change_user(id, database).await);
        }
        // What a database is to somebody without rights there is not what it is to the superuser.
        let same = errors[0] == errors[1] || !database.is_empty();
        assert!(errors.iter().all(Option::is_some) && same, "{errors:?}");
        assert_eq!(through.state().await, directly.state().await, "{id} {database}");
    }
    world.stop().await;
}

#[tokio::test]
async fn the_collation_of_a_login_is_the_servers() {
    let world = World::start(Flaws::default(), |_| ()).await;
    for collation in [0, 8, 45, 46, 83, 192, 224, 246, 255] {
        let through = TcpStream::connect((world.address, 3306)).await.unwrap();
        let directly = UnixStream::connect(world.database.socket()).await.unwrap();
        let (mut through, mut directly) = (Raw::login(through, collation).await, Raw::login(directly, collation).await);
        // All but the database, of which the target has one.
        let (got, expected) = (through.state().await, directly.state().await);
        assert_eq!(got[..4], expected[..4], "{collation}");
    }
    world.stop().await;
}

#[tokio::test]
async fn an_empty_command_is_answered_and_a_reset_behind_it_stays_read_only() {
    let world = World::start(Flaws::default(), |_| ()).await;
    let mut client = Raw::through(&world).await;
    let mut both = vec![0, 0, 0, 0];
    both.extend_from_slice(&[1, 0, 0, 0, RESET_CONNECTION]);
    client.0.write_all(&both).await.unwrap();
    let (number, unknown) = client.read().await;
    assert_eq!((number, &unknown[..3]), (1, &[ERR, 0x17, 4][..]));
    assert_eq!(client.read().await.1.first(), Some(&OK));
    let refused = client.command(b"\x03create table scratch.nothing (id int)").await;
    assert!(String::from_utf8_lossy(&refused).contains("READ ONLY transaction"), "{refused:?}");
    world.stop().await;
}

#[tokio::test]
async fn a_file_is_sent_where_the_target_allows_it_and_recorded() {
    let world = World::start(Flaws::default(), |relay| {
        let port = u16::try_from(relay["target"]["events"]["port"].as_u64().unwrap()).unwrap();
        let mut files = target(port, "db_read");
        (files["read_only"], files["local_infile"]) = (json!(false), json!(true));
        relay["target"]["files"] = files;
        relay["target"]["events"]["read_only"] = json!(false);
    })
    .await;
    world.root("create table scratch.rows_of_a_file (id int, name varchar(20))").await;
    let file = world.folder.path().join("rows.csv");
    // It begins like COM_CHANGE_USER, and has more packets than there are numbers for them.
    let rows: String = (0..400_000).map(|id| format!("{id}\t\u{11}name\n")).collect();
    std::fs::write(&file, &rows).unwrap();
    let load = format!("load data local infile '{}' into table scratch.rows_of_a_file", file.display());
    let count = format!("{load}; select count(*) from scratch.rows_of_a_file");
    // Ports go to the targets in the order of their names: events, events-admin, files.
    let (code, out, err) = world.mariadb(3308, &["--local-infile=1"], &count).await;
    assert_eq!((code, out.as_str()), (0, "400000"), "{err}");
    let (code, _, err) = world.mariadb(3306, &["--local-infile=1"], &count).await;
    assert!(code == 1 && err.contains("local infile"), "{err}");
    world.wait_for("\"event\":\"local_infile\"").await;
    let log = world.log();
    let records: Vec<Value> = log.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let files: Vec<&Value> = records.iter().filter(|record| record["event"] == "local_infile").collect();
    assert_eq!(files.len(), 1, "{log}");
    assert_eq!(
        (&files[0]["file"], &files[0]["bytes"], &files[0]["outcome"], &files[0]["target"]),
        (&json!(file.display().to_string()), &json!(rows.len()), &json!("sent"), &json!("files"))
    );
    world.stop().await;
}

#[tokio::test]
async fn connections_that_come_to_no_login_do_not_add_up() {
    let world = World::start(Flaws::default(), |_| ()).await;
    drop(world.client().await);
    let aborted = async || {
        let said = world.root("show global status like 'Aborted_connects'").await;
        said.split_whitespace().last().unwrap().parse::<u32>().unwrap()
    };
    let before = aborted().await;
    for _ in 0..60 {
        let mut scanner = TcpStream::connect((world.address, 3306)).await.unwrap();
        assert!(scanner.read(&mut [0; 1024]).await.unwrap() > 10);
    }
    // A login counts from the start, and the number of its greeting is its own again with the next one.
    let (first, second) = (world.client().await, world.client().await);
    assert_eq!(first.id(), 0);
    assert_ne!(second.id(), 0);
    let after = tokio::time::timeout(PATIENCE, async {
        loop {
            let now = aborted().await;
            tokio::time::sleep(Duration::from_millis(50)).await;
            if now == aborted().await {
                return now;
            }
        }
    });
    let added = after.await.unwrap() - before;
    assert!(added <= 20, "{added} aborted handshakes");
    drop((first, second));
    world.stop().await;
}

#[tokio::test]
async fn the_database_is_not_dialled_before_the_password_is_proven() {
    let world = World::start(Flaws::default(), |relay| relay["local_password"] = json!(true)).await;
    let connections = async || {
        let said = world.root("show global status like 'Connections'").await;
        said.split_whitespace().last().unwrap().parse::<u32>().unwrap()
    };
    let greeted = async || {
        let mut client = TcpStream::connect((world.address, 3306)).await.unwrap();
        let mut greeting = vec![0; 1024];
        let length = client.read(&mut greeting).await.unwrap();
        greeting.truncate(length);
        (client, greeting)
    };
    // What the database says first is not known yet, and then it is.
    let real = greeted().await.1;
    let version = real.iter().skip(5).position(|byte| *byte == 0).unwrap() + 5;
    let known = async { while greeted().await.1[version + 1..version + 5] != [0; 4] {} };
    tokio::time::timeout(PATIENCE, known).await.unwrap();
    let before = connections().await;
    let (mut client, remembered) = greeted().await;
    // The version, and the number of no connection.
    assert_eq!(remembered[..=version], real[..=version]);
    assert_eq!(remembered[version + 1..version + 5], [0; 4]);
    let login =
        [&CAPABILITIES.to_le_bytes()[..], &[0; 28], b"anyone\0\x14", &[7; 20], b"mysql_native_password\0"].concat();
    let head = [u8::try_from(login.len()).unwrap(), 0, 0, 1];
    client.write_all(&[&head[..], &login].concat()).await.unwrap();
    let mut said = Vec::new();
    tokio::time::timeout(PATIENCE, client.read_to_end(&mut said)).await.unwrap().unwrap();
    let said = String::from_utf8_lossy(&said).into_owned();
    assert!(said.contains("#28000Access denied for user") && said.contains("bastion: access denied"), "{said}");
    // Only the question itself.
    assert_eq!(connections().await, before + 1);
    world.stop().await;
}
