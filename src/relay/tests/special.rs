//! Databases that are not like others: behind RDS Proxy or a pooler, paused, out of reach.

use bastion_wire::pg::message::{self, ErrorFields};
use bastion_wire::pg::parameters::READ_ONLY;
use bytes::BytesMut;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::stand_in::{Habits, Stage, StandIn};
use super::*;

const INSTANCE: &str = "orders.abc123.ap-northeast-1.rds.amazonaws.com";
const PROXY: &str = "orders.proxy-abc123.ap-northeast-1.rds.amazonaws.com";
const UNSUPPORTED: &str =
    "Feature not supported: RDS Proxy currently doesn’t support the option default_transaction_read_only.";

fn config_of(stand_in: &StandIn, engine: Engine, host: &str, listen: Ipv4Addr) -> Config {
    let mut config = config_for(engine, host, stand_in.port, &stand_in.ca_file, listen, &["db_read"]);
    config.targets[0].read_only = engine == Engine::Postgres;
    config
}

/// What a client hears that says nothing but its startup packet, and a Terminate once it is let in.
async fn session(listen: Ipv4Addr) -> Vec<u8> {
    let mut client = TcpStream::connect((listen, 5432)).await.unwrap();
    client.write_all(b"\0\0\0\x15\0\x03\0\0user\0anyone\0\0").await.unwrap();
    let mut heard = Vec::new();
    while client.read_buf(&mut heard).await.unwrap() > 0 {
        if heard.ends_with(b"Z\0\0\0\x05I") {
            client.write_all(b"X\0\0\0\x04").await.unwrap();
        }
    }
    heard
}

/// The types of the messages in `bytes`, and the first error.
fn messages(bytes: &[u8]) -> (String, ErrorFields) {
    let (mut rest, mut tags, mut error) = (BytesMut::from(bytes), String::new(), ErrorFields::default());
    while let Some(message) = message::decode(&mut rest).unwrap() {
        tags.push(char::from(message.tag));
        if message.tag == b'E' {
            error = ErrorFields::parse(&message.body);
        }
    }
    (tags, error)
}

/// Serves one client from a stand-in: what the client has heard, how often and how the relay has logged in.
async fn played(last: u8, host: &str, habits: Habits) -> (String, ErrorFields, Vec<bool>, Vec<String>) {
    let folder = tempfile::tempdir().unwrap();
    let stand_in = StandIn::start(folder.path(), Engine::Postgres, host, habits).await;
    let listen = Ipv4Addr::new(127, 63, 103, last);
    let (drain, serving) = serve(config_of(&stand_in, Engine::Postgres, host, listen), postgres::PASSWORD).await;
    let (tags, error) = messages(&session(listen).await);
    drain.cancel();
    serving.await.unwrap();
    let parameters =
        stand_in.startups.lock().unwrap().iter().map(|startup| startup.parameter(READ_ONLY).is_some()).collect();
    let statements = stand_in.statements.lock().unwrap().clone();
    (tags, error, parameters, statements)
}

#[tokio::test]
async fn a_session_behind_rds_proxy_is_made_read_only_by_a_statement() {
    let refuses = Some(("0A000", UNSUPPORTED));
    let set = vec![format!("SET {READ_ONLY} = on\0")];
    // As any other database.
    let (tags, _, parameters, statements) = played(1, INSTANCE, Habits::default()).await;
    assert_eq!((tags.as_str(), parameters, statements), ("RSKZ", vec![true], Vec::new()));
    // Known by its name.
    let habits = Habits { refuses, ..Habits::default() };
    let (tags, _, parameters, statements) = played(2, PROXY, habits).await;
    assert_eq!((tags.as_str(), parameters, &statements), ("RSKZ", vec![false], &set));
    // Known by what it says.
    let (tags, _, parameters, statements) = played(3, INSTANCE, habits).await;
    assert_eq!((tags.as_str(), parameters, &statements), ("RSKZ", vec![true, false], &set));
    // Where it does not take the statement either, nobody comes in.
    let (tags, error, ..) = played(4, PROXY, Habits { refuses_statement: true, ..habits }).await;
    assert_eq!((tags.as_str(), error.code.as_str()), ("E", "42501"));
    // The database's own words come first.
    assert_eq!(error.message, "permission denied");
    assert!(error.detail.contains("did not make the session read-only"), "{error:?}");
}

#[tokio::test]
async fn a_pooler_that_shares_its_connections_gets_no_setting_that_would_stay_behind() {
    let text = "unsupported startup parameter: default_transaction_read_only";
    let habits = Habits { refuses: Some(("08P01", text)), ..Habits::default() };
    let (tags, error, parameters, statements) = played(5, INSTANCE, habits).await;
    assert_eq!((tags.as_str(), parameters, statements), ("E", vec![true], Vec::new()));
    assert!(error.message.contains(text) && error.hint.contains("track_extra_parameters"), "{error:?}");
}

#[tokio::test]
async fn a_database_that_needs_twenty_seconds_to_wake_is_waited_for() {
    for (last, stage) in [(6, Stage::Greeting), (7, Stage::Tls), (8, Stage::Login)] {
        let habits = Habits { wakes: Some((stage, Duration::from_secs(20))), ..Habits::default() };
        let (tags, error, ..) = played(last, INSTANCE, habits).await;
        assert_eq!(tags, "RSKZ", "{stage:?} {error:?}");
    }
}

#[tokio::test]
async fn a_client_of_a_database_that_does_not_wake_in_time_hears_so() {
    let nearly = Duration::from_millis(39_900);
    for (last, stage, part) in [
        (9, Stage::Greeting, "did not finish the login within 40 s"),
        (10, Stage::Tls, "the handshake took longer than 40 s"),
        (11, Stage::Login, "did not finish the login within 40 s"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        // The rest of the time is real, so that the relay's own threads keep up.
        let habits = Habits { wakes: Some((stage, nearly)), never: true, ..Habits::default() };
        let stand_in = StandIn::start(folder.path(), Engine::Postgres, INSTANCE, habits).await;
        let listen = Ipv4Addr::new(127, 63, 103, last);
        let (drain, serving) =
            serve(config_of(&stand_in, Engine::Postgres, INSTANCE, listen), postgres::PASSWORD).await;
        let (tags, error) = messages(&session(listen).await);
        assert_eq!(tags, "E");
        assert!(error.message.contains(part) && error.hint.contains("may still be waking"), "{error:?}");
        drain.cancel();
        serving.await.unwrap();
    }
}

#[tokio::test]
async fn a_mysql_client_waits_for_the_greeting_of_a_database_that_wakes() {
    let folder = tempfile::tempdir().unwrap();
    let habits = Habits { wakes: Some((Stage::Greeting, Duration::from_secs(20))), ..Habits::default() };
    let stand_in = StandIn::start(folder.path(), Engine::Mysql, INSTANCE, habits).await;
    let listen = Ipv4Addr::new(127, 63, 103, 12);
    let (drain, serving) = serve(config_of(&stand_in, Engine::Mysql, INSTANCE, listen), mariadb::PASSWORD).await;
    let mut heard = Vec::new();
    TcpStream::connect((listen, 3306)).await.unwrap().read_to_end(&mut heard).await.unwrap();
    assert!(String::from_utf8_lossy(&heard).contains("Too many connections"), "{heard:?}");
    drain.cancel();
    serving.await.unwrap();
}

/// A full backlog drops every further SYN, which is what a security group does.
#[tokio::test]
async fn a_database_behind_a_closed_security_group_is_named_in_bounded_time() {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&"127.0.0.1:0".parse::<SocketAddr>().unwrap().into()).unwrap();
    socket.listen(0).unwrap();
    let port = socket.local_addr().unwrap().as_socket().unwrap().port();
    let mut full = Vec::new();
    while let Ok(Ok(stream)) =
        tokio::time::timeout(Duration::from_millis(300), TcpStream::connect(("127.0.0.1", port))).await
    {
        full.push(stream);
        assert!(full.len() < 100, "the backlog never fills");
    }
    let folder = tempfile::tempdir().unwrap();
    let stand_in = StandIn::start(folder.path(), Engine::Postgres, INSTANCE, Habits::default()).await;
    let listen = Ipv4Addr::new(127, 63, 103, 13);
    let mut config = config_of(&stand_in, Engine::Postgres, INSTANCE, listen);
    config.targets[0].endpoint = Endpoint::Fixed(Address { host: INSTANCE.to_owned(), port });
    let (drain, serving) = serve(config, postgres::PASSWORD).await;
    let waiting = async {
        // The relay dials by then; nothing but its patience passes.
        tokio::time::sleep(Duration::from_secs(1)).await;
        tokio::time::pause();
        tokio::time::sleep(Duration::from_millis(38_500)).await;
        tokio::time::resume();
    };
    let (heard, ()) = tokio::join!(session(listen), waiting);
    let (_, error) = messages(&heard);
    assert!(
        error.message.contains("cannot reach target db_read at") && error.message.contains("no answer within 40 s")
    );
    assert!(error.hint.contains("Let the security group of the database"), "{error:?}");
    drain.cancel();
    serving.await.unwrap();
}
