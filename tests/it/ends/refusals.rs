//! What the database says itself when it refuses or ends a session, as its own programs show it: each time, and unchanged.

use std::process::Stdio;

use bastion_sandbox::mariadb;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::process::Command;

use super::{Ends, LANES, mysql_login, packet, rest, startup, warned};
use crate::support::{PATIENCE, finish};
use crate::up::Up;

/// What psql shows for these options of its own.
async fn psql(up: &Up, options: &str) -> String {
    let mut psql = Command::new("psql");
    let target = format!("host=127.0.0.1 port={} user=anyone {options}", up.port("orders"));
    psql.env("PGCONNECT_TIMEOUT", "20").args(["-X", "-w", "-c", "select 1", "-d", &target]);
    finish(psql).await.2
}

async fn mariadb(up: &Up, database: &str) -> String {
    let mut client = Command::new("mariadb");
    client.args(["--no-defaults", "-h", "127.0.0.1", "-P", &up.port("events").to_string(), "-u", "anyone"]);
    client.args(["-e", "select 1", database]);
    finish(client).await.2
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_of_the_database_is_heard_each_time_and_is_no_news() {
    let ends = Ends::start().await;
    let ups = ends.ups(&[]).await;
    for (lanes, up) in LANES.into_iter().zip(&ups) {
        for (options, parameters, code, expected, times) in [
            // Most often where there is most to go wrong.
            (
                "dbname=nosuch",
                ("database", "nosuch"),
                "C3D000",
                "database \"nosuch\" does not exist",
                if lanes == "4" { 40 } else { 10 },
            ),
            (
                "options='-c nosuch=1'",
                ("options", "-c nosuch=1"),
                "C42704",
                "unrecognized configuration parameter \"nosuch\"",
                10,
            ),
            (
                "options='-c work_mem=none'",
                ("options", "-c work_mem=none"),
                "C22023",
                "invalid value for parameter \"work_mem\": \"none\"",
                10,
            ),
        ] {
            let said = psql(up, options).await;
            assert!(said.contains(&format!("FATAL:  {expected}")), "{lanes} lanes, {code}: {said}");
            for time in 1..times {
                let mut client = TcpStream::connect(("127.0.0.1", up.port("orders"))).await.unwrap();
                client.write_all(&startup(&[parameters])).await.unwrap();
                let row = format!("{lanes} lanes, {code}, {time}");
                let (heard, ended) = rest(&mut client, &row).await;
                let (text, error) = (String::from_utf8_lossy(&heard), format!("VFATAL\0{code}\0M{expected}\0"));
                assert!(ended.is_ok() && text.matches("VFATAL").count() == 1 && text.contains(&error), "{row}: {text}");
            }
        }
        let said = mariadb(up, "nosuch").await;
        assert!(said.starts_with("ERROR 1044 (42000): Access denied for user 'db_read'@"), "{lanes} lanes: {said}");
        for time in 1..10 {
            let mut client = TcpStream::connect(("127.0.0.1", up.port("events"))).await.unwrap();
            let _greeting = packet(&mut client).await;
            client.write_all(&mysql_login("nosuch")).await.unwrap();
            let row = format!("{lanes} lanes, 1044, {time}");
            let (heard, ended) = rest(&mut client, &row).await;
            let error = b"\xff\x14\x04#42000Access denied for user";
            let denied = heard.windows(error.len()).filter(|part| *part == error).count() == 1;
            assert!(
                ended.is_ok() && denied && String::from_utf8_lossy(&heard).contains("'nosuch'"),
                "{row}: {heard:?}"
            );
        }
    }
    for (lanes, up) in LANES.into_iter().zip(ups) {
        let (code, events) = up.end().await;
        assert_eq!(code, Some(0));
        for target in ["orders", "events"] {
            assert_eq!(warned(&events, target), [""; 0], "{lanes} lanes");
        }
    }
    ends.stop().await;
}

/// The command line client, whose session has been idle for longer than the server allows.
async fn timed_out(port: u16, more: &[&str]) -> String {
    let mut client = Command::new("mariadb");
    client.args(["--no-defaults", "--skip-reconnect", "-N", "-h", "127.0.0.1", "-P", &port.to_string()]).args(more);
    client.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut client = client.spawn().unwrap();
    let mut input = client.stdin.take().unwrap();
    input.write_all(b"set wait_timeout=1;\n\\! sleep 3\nselect 'still here';\n").await.unwrap();
    drop(input);
    let output = tokio::time::timeout(PATIENCE, client.wait_with_output()).await.unwrap().unwrap();
    let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    // Some versions show the statement first.
    said.lines().find(|line| line.starts_with("ERROR")).unwrap_or(&said).to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_the_database_has_timed_out_is_gone_as_directly() {
    let ends = Ends::start().await;
    let ups = ends.ups(&[]).await;
    let (password, user) = (format!("-p{}", mariadb::PASSWORD), ["-u", "anyone"]);
    let [one, two, three] = ups.each_ref().map(|up| timed_out(up.port("events"), &user));
    let directly = ["-u", "native_user", &password, "--ssl"];
    let directly = timed_out(ends.events.port, &directly);
    let (directly, one, two, three) = tokio::join!(directly, one, two, three);
    assert!(directly.starts_with("ERROR 2006 (HY000)"), "{directly}");
    assert_eq!([&one, &two, &three], [&directly; 3]);
    for (lanes, up) in LANES.into_iter().zip(ups) {
        let (code, events) = up.end().await;
        assert_eq!((code, warned(&events, "events").len()), (Some(0), 0), "{lanes} lanes: {events:?}");
    }
    ends.stop().await;
}
