//! The rows of the table that limits of the relay bring about, which are lowered here.

use std::io::ErrorKind;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncWrite, AsyncWriteExt as _};

use super::Hears::Error;
use super::{Ends, How, LANES, TARGETS, assert_hears, client, said, warned};
use crate::support::PATIENCE;

/// Milliseconds without an answer, and bytes that wait for their readers.
const ANSWER_TIMEOUT: (&str, &str) = ("BASTION_TEST_ANSWER_TIMEOUT", "2000");
const ARRIVED: (&str, &str) = ("BASTION_TEST_ARRIVED", "102400");
/// A statement that keeps the database busy for as long as the test takes.
const BUSY: [&[u8]; 2] = [b"Q\0\0\0\x19select pg_sleep(100)\0", b"\x12\0\0\0\x03select sleep(100)"];

/// Ends that statement, whose session may be over by itself, or have no record so far. The relay looks after its client again
/// once the database takes what is on its way.
async fn interrupt(ends: &Ends, engine: usize) {
    loop {
        tokio::time::sleep(Duration::from_millis(100)).await;
        interrupt_last(ends, engine).await;
    }
}

async fn interrupt_last(ends: &Ends, engine: usize) {
    let log = ends.world.sandbox.task_log(&ends.task());
    let records = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let mut opened =
        records.filter(|record| record["event"] == "connection_opened" && record["target"] == TARGETS[engine]);
    let number = opened.next_back().unwrap()["db_conn_id"].as_u64().unwrap();
    let _is_over = match engine {
        0 => ends.world.database.sql("postgres", &format!("select pg_cancel_backend({number})")).await,
        _ => ends.events.sql("mysql", &format!("kill query {number}")).await,
    };
}

/// Sends the starts of long statements, which nobody reads now, for ever.
async fn fill(to: &mut (impl AsyncWrite + Unpin), engine: usize) {
    let (head, length): (&[u8], usize) = match engine {
        0 => (b"Q\x3f\0\0\0", 0x3000_0000),
        _ => (b"\0\0\xf0\0\x03", 0xf0_0000 - 1),
    };
    let blanks = vec![b' '; 0x1_0000];
    loop {
        let filling = async {
            to.write_all(head).await?;
            for start in (0..length).step_by(blanks.len()) {
                to.write_all(&blanks[..blanks.len().min(length - start)]).await?;
            }
            std::io::Result::Ok(())
        };
        if filling.await.is_err() {
            return std::future::pending().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_ends_at_a_limit_of_the_relay_says_so() {
    let ends = Ends::start_with(|config| {
        for definition in &mut config.task_definitions {
            for (variable, value) in [ANSWER_TIMEOUT, ARRIVED] {
                definition.environment.insert(variable.to_owned(), value.to_owned());
            }
        }
    })
    .await;
    let ups = ends.ups(&[]).await;
    for (lanes, up) in LANES.into_iter().zip(&ups) {
        // A change of the user waits for the answer before it.
        let row = format!("{lanes} lanes, events: database, timed out");
        let mut changing = client(up, 1).await;
        let change = b"\x11anyone\0\0\0\x2d\0mysql_native_password\0";
        let head = [u8::try_from(change.len()).unwrap(), 0, 0, 0];
        changing.write_all(&[BUSY[1], &head, change].concat()).await.unwrap();
        let heard = assert_hears(&mut changing, Error(&[0xff, 0x86, 0x04]), &row).await;
        // It is the answer to the statement.
        assert!(heard[3] == 1 && String::from_utf8_lossy(&heard).contains(" 2 s"), "{row}: {heard:?}");
        let found = ends.record("events").await;
        assert_eq!(said(&found), ("upstream", true), "{row}: {found}");

        // Without lanes nothing waits in the relay.
        if lanes == "0" {
            continue;
        }
        for (engine, hears) in [Error(b"08006"), Error(&[0xff, 0x86, 0x04])].into_iter().enumerate() {
            let target = TARGETS[engine];
            let row = format!("{lanes} lanes, {target}: relay, cut");
            let mut busy = client(up, engine).await;
            busy.write_all(BUSY[engine]).await.unwrap();
            let (mut read, mut write) = busy.into_split();
            let heard = tokio::select! {
                heard = assert_hears(&mut read, hears, &row) => heard,
                () = fill(&mut write, engine) => unreachable!("it has no end"),
            };
            let text = String::from_utf8_lossy(&heard);
            assert!(text.contains("wait for their reader is used up: 100 KiB"), "{row}: {text}");
            let found = tokio::select! {
                found = ends.record(target) => found,
                () = interrupt(&ends, engine) => unreachable!("it has no end"),
            };
            assert_eq!(said(&found), ("relay", true), "{row}: {found}");
        }
        let row = format!("{lanes} lanes, bytes: relay, cut");
        let mut busy = client(up, 2).await;
        ends.lines[2].end.send_replace(Some(How::Stuck));
        let blanks = vec![b' '; 0x1_0000];
        let filling = async {
            loop {
                if let Err(error) = busy.write_all(&blanks).await {
                    return error.kind();
                }
            }
        };
        let ended = tokio::time::timeout(PATIENCE, filling).await.unwrap_or_else(|_| panic!("{row}: nothing comes"));
        assert_eq!(ended, ErrorKind::ConnectionReset, "{row}");
        // The relay looks after its client again once the server takes what is on its way.
        ends.lines[2].end.send_replace(Some(How::Clean));
        let found = ends.record("bytes").await;
        assert_eq!(said(&found), ("relay", true), "{row}: {found}");
    }
    for (lanes, up) in LANES.into_iter().zip(ups) {
        let (code, events) = up.end().await;
        assert_eq!(code, Some(0));
        for target in TARGETS {
            let told = warned(&events, target);
            assert_eq!(told.len(), usize::from(lanes != "0"), "{lanes} lanes, {target}: {told:?}");
        }
    }
    ends.stop().await;
}
