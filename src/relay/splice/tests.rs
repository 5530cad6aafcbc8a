use bastion_wire::error_text::ErrorText;
use bastion_wire::memory::Memory;
use bastion_wire::mysql::agreed::Agreed;
use bastion_wire::mysql::capability::PROGRESS;
use bastion_wire::mysql::server::Server;
use bastion_wire::session::Session;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

use super::*;

const CLIENT: End = End::new(Who::Client, How::Clean);
const DATABASE: End = End::new(Who::Database, How::Clean);
const SILENT: End = End::new(Who::Database, How::TimedOut);
const TASK: End = End::new(Who::Task, How::Cut);

/// A splice between two in-memory pipes, and the far ends.
async fn spliced<F: Future>(
    pipe: usize,
    far: impl FnOnce(tokio::io::DuplexStream, tokio::io::DuplexStream) -> F,
) -> (Spliced, F::Output) {
    let (client, mut near_client) = duplex(pipe);
    let (upstream, mut near_upstream) = duplex(pipe);
    let (up, down) = (Counter::default(), Counter::default());
    let cut = CancellationToken::new();
    let splicing = splice(&mut near_client, &mut near_upstream, b"", (&up, &down), None, &cut);
    let both = tokio::join!(splicing, far(client, upstream));
    assert_eq!((up.get(), down.get()), (both.0.up, both.0.down));
    both
}

#[tokio::test]
async fn an_answer_after_half_close_arrives_whole() {
    let big = vec![7_u8; 1_000_000];
    let sent = big.clone();
    let (spliced, answer) = spliced(1000, |mut client, mut upstream| async move {
        let client = async move {
            client.write_all(b"question").await.unwrap();
            client.shutdown().await.unwrap();
            let mut answer = Vec::new();
            client.read_to_end(&mut answer).await.unwrap();
            answer
        };
        let upstream = async move {
            let mut question = Vec::new();
            upstream.read_to_end(&mut question).await.unwrap();
            assert_eq!(question, b"question");
            upstream.write_all(&sent).await.unwrap();
            upstream.shutdown().await.unwrap();
        };
        tokio::join!(client, upstream).0
    })
    .await;
    assert_eq!(answer, big);
    assert_eq!((spliced.up, spliced.down), (8, 1_000_000));
    assert_eq!(spliced.end, CLIENT);
    assert!(spliced.error.is_none());
}

#[tokio::test]
async fn a_client_that_has_said_goodbye_has_ended_it_even_if_the_database_closes_first() {
    for (last, ended_by) in
        [(&b"Q\0\0\0\x06;\0X\0\0\0\x04"[..], CLIENT), (b"\x01\0\0\0\x01", CLIENT), (b"Q\0\0\0\x06;\0", DATABASE)]
    {
        let (spliced, ()) = spliced(64, |mut client, mut upstream| async move {
            client.write_all(last).await.unwrap();
            upstream.read_exact(&mut vec![0; last.len()]).await.unwrap();
            drop(upstream);
            client.read_to_end(&mut Vec::new()).await.unwrap();
        })
        .await;
        assert_eq!(spliced.end, ended_by, "{last:?}");
    }
}

#[tokio::test]
async fn both_directions_at_once_do_not_block_each_other() {
    let (spliced, ()) = spliced(64, |mut client, mut upstream| async move {
        let (mut client_read, mut client_write) = tokio::io::split(&mut client);
        let (mut upstream_read, mut upstream_write) = tokio::io::split(&mut upstream);
        let mut seen = (Vec::new(), Vec::new());
        let (a, b, c, d) = tokio::join!(
            async { client_write.write_all(&[1; 100_000]).await.and(client_write.shutdown().await) },
            async { upstream_write.write_all(&[2; 100_000]).await.and(upstream_write.shutdown().await) },
            client_read.read_to_end(&mut seen.0),
            upstream_read.read_to_end(&mut seen.1),
        );
        a.unwrap();
        b.unwrap();
        assert_eq!((c.unwrap(), d.unwrap()), (100_000, 100_000));
    })
    .await;
    assert_eq!((spliced.up, spliced.down), (100_000, 100_000));
}

#[tokio::test]
async fn a_cut_ends_it_with_what_went_through() {
    let (mut client, mut near_client) = duplex(64);
    let (mut upstream, mut near_upstream) = duplex(64);
    let (up, down, cut) = (Counter::default(), Counter::default(), CancellationToken::new());
    let cutting = async {
        client.write_all(b"question").await.unwrap();
        upstream.read_exact(&mut [0; 8]).await.unwrap();
        cut.cancel();
    };
    let splicing = splice(&mut near_client, &mut near_upstream, b"", (&up, &down), None, &cut);
    let (spliced, ()) = tokio::join!(splicing, cutting);
    assert_eq!((spliced.up, spliced.end), (8, TASK));
}

#[tokio::test]
async fn a_client_that_is_gone_ends_it() {
    let (spliced, ()) = spliced(64, |client, mut upstream| async move {
        drop(client);
        let mut rest = Vec::new();
        upstream.read_to_end(&mut rest).await.unwrap();
    })
    .await;
    assert_eq!(spliced.end, CLIENT);
}

/// An idle session of MySQL.
fn mysql(capabilities: u32) -> Followed<'static> {
    let agreed = Agreed { capabilities, extended: PROGRESS, server: Server::MariaDb, stops_at_reset: false };
    Followed::new(Session::mysql(agreed, &Memory::relay().asked, None), None)
}

const STATEMENT: &[u8] = b"\x09\0\0\0\x03select 1";
const CHANGE: &[u8] = b"\x06\0\0\0\x11root\0";
const FINE: &[u8] = b"\x07\0\0\x01\0\0\0\x02\0\0\0";

/// A copy of a client that sends `sent`, and of an upstream that gets `passed` and answers with `answers`.
async fn stopped(early: &[u8], sent: &[u8], passed: &[u8], answers: &[u8]) -> Vec<u8> {
    let (mut client, mut near_client) = duplex(16);
    let (mut upstream, mut near_upstream) = duplex(16);
    let (up, down) = (Counter::default(), Counter::default());
    let asking = async {
        client.write_all(sent).await.unwrap();
        let mut heard = vec![0; answers.len()];
        client.read_exact(&mut heard).await.unwrap();
        assert_eq!(heard, answers);
        client
    };
    let answering = async {
        let mut seen = vec![0; passed.len()];
        upstream.read_exact(&mut seen).await.unwrap();
        assert_eq!(seen, passed);
        upstream.write_all(answers).await.unwrap();
        upstream
    };
    let (cut, mut session) = (CancellationToken::new(), mysql(0));
    let copying = splice(&mut near_client, &mut near_upstream, early, (&up, &down), Some(&mut session), &cut);
    let (spliced, _client, _upstream) = tokio::join!(copying, asking, answering);
    assert_eq!(spliced.down, answers.len() as u64);
    spliced.stopped.unwrap()
}

#[tokio::test]
async fn a_command_for_the_relay_stops_the_copy_at_its_first_byte() {
    let sent = [&STATEMENT[5..], CHANGE].concat();
    let stopped = stopped(&STATEMENT[..5], &sent, STATEMENT, FINE).await;
    // The rest of the command may still be on its way.
    assert!(stopped.len() > 4 && CHANGE.starts_with(&stopped), "{stopped:?}");
}

#[tokio::test]
async fn a_client_that_does_not_wait_has_all_its_answers_first() {
    let sent = [STATEMENT, STATEMENT, STATEMENT, CHANGE].concat();
    let result =
        [packet(1, &[1]), packet(2, b"\x03def"), packet(3, b"\xfe\0\0\x02\0"), packet(4, b"\xfe\0\0\x02\0")].concat();
    let answers = [FINE, &result, FINE].concat();
    assert!(CHANGE.starts_with(&stopped(b"", &sent, &sent[..3 * STATEMENT.len()], &answers).await));
}

/// A copy of a client that has sent a change of its user behind a command that is not answered.
async fn owed(after: impl AsyncFnOnce(tokio::io::DuplexStream)) -> (Spliced, tokio::io::DuplexStream) {
    let (mut client, mut near_client) = duplex(64);
    let (mut upstream, mut near_upstream) = duplex(64);
    let (up, down) = (Counter::default(), Counter::default());
    let asking = async {
        client.write_all(&[STATEMENT, CHANGE].concat()).await.unwrap();
        let mut seen = vec![0; STATEMENT.len()];
        upstream.read_exact(&mut seen).await.unwrap();
        upstream.write_all(&FINE[..5]).await.unwrap();
        tokio::task::yield_now().await;
        after(client).await;
        upstream
    };
    let (cut, mut session) = (CancellationToken::new(), mysql(0));
    let copying = splice(&mut near_client, &mut near_upstream, b"", (&up, &down), Some(&mut session), &cut);
    tokio::join!(copying, asking)
}

#[tokio::test]
async fn a_client_that_leaves_before_its_answers_ends_it() {
    let (spliced, _upstream) = owed(async |client| drop(client)).await;
    assert_eq!((spliced.end, spliced.breach), (CLIENT, None));
    assert!(spliced.stopped.is_none());
    // Behind the command there is more.
    let (spliced, _upstream) = owed(async |mut client| {
        client.write_all(STATEMENT).await.unwrap();
        client.shutdown().await.unwrap();
    })
    .await;
    assert_eq!((spliced.end, spliced.stopped), (CLIENT, None));
}

#[tokio::test(start_paused = true)]
async fn answers_that_never_come_are_not_waited_for_without_end() {
    let began = tokio::time::Instant::now();
    let mut kept = None;
    let (spliced, _upstream) = owed(async |client| kept = Some(client)).await;
    assert_eq!((spliced.end, spliced.breach), (SILENT, Some(Breach::Unanswered)));
    assert!(spliced.stopped.is_none() && began.elapsed() >= *ANSWER_TIMEOUT);
}

/// A message of PostgreSQL.
fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).unwrap();
    [&[tag][..], &length.to_be_bytes(), body].concat()
}

/// The messages that a client reads, up to the end of the stream or `count` of them.
async fn messages(client: &mut tokio::io::DuplexStream, count: usize) -> Vec<(u8, Vec<u8>)> {
    let mut found = Vec::new();
    while found.len() < count
        && let Ok(tag) = client.read_u8().await
    {
        let length = client.read_u32().await.unwrap();
        let mut body = vec![0; usize::try_from(length).unwrap() - 4];
        client.read_exact(&mut body).await.unwrap();
        found.push((tag, body));
    }
    found
}

#[tokio::test]
async fn a_notice_goes_between_two_messages_however_the_bytes_come() {
    let rows: Vec<u8> = (0..20).flat_map(|n| message(b'D', &[n; 30])).collect();
    // While the stream is idle, and in the middle of a message.
    for before in [0, 35, 40, 61] {
        let (mut client, mut near_client) = duplex(16);
        let (mut upstream, mut near_upstream) = duplex(16);
        let (up, down, cut) = (Counter::default(), Counter::default(), CancellationToken::new());
        let (due, is_due) = tokio::sync::oneshot::channel::<()>();
        let text = async {
            is_due.await.unwrap();
            ErrorText { message: "it ends".to_owned(), ..ErrorText::default() }
        };
        let mut session = Followed::new(Session::postgres(None), None).with_notice(text);
        let splicing = splice(&mut near_client, &mut near_upstream, b"", (&up, &down), Some(&mut session), &cut);
        let sending = async {
            let (first, later) = rows.split_at(before);
            upstream.write_all(first).await.unwrap();
            due.send(()).unwrap();
            upstream.write_all(later).await.unwrap();
            upstream
        };
        let reading = async {
            let found = messages(&mut client, 21).await;
            cut.cancel();
            found
        };
        let (spliced, _upstream, found) = tokio::join!(splicing, sending, reading);
        let (notices, others): (Vec<_>, Vec<_>) = found.into_iter().partition(|(tag, _)| *tag == b'N');
        assert!(notices.len() == 1 && String::from_utf8_lossy(&notices[0].1).contains("Mit ends"), "{before}");
        assert_eq!(others.iter().flat_map(|(tag, body)| message(*tag, body)).collect::<Vec<u8>>(), rows);
        assert_eq!((spliced.down, spliced.rest.len()), (rows.len() as u64, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_wait_is_held_until_answers_come() {
    const SAID: usize = 20_000;
    let (mut client, mut near_client) = duplex(1 << 20);
    let (mut upstream, mut near_upstream) = duplex(1 << 20);
    let (up, down, cut) = (Counter::default(), Counter::default(), CancellationToken::new());
    let limits = bastion_wire::session::text::Limits::new(100, None, &Memory::relay());
    let mut session = Followed::new(Session::postgres(Some(limits)), None);
    let splicing = splice(&mut near_client, &mut near_upstream, b"", (&up, &down), Some(&mut session), &cut);
    let saying = async {
        client.write_all(&message(b'S', &[]).repeat(SAID)).await.unwrap();
        client.shutdown().await.unwrap();
        messages(&mut client, SAID + 1).await.len()
    };
    let answering = async {
        let (mut seen, mut buffer) = (0, vec![0; 1 << 20]);
        let mut most = 0;
        loop {
            // Everything that comes without an answer.
            while let Ok(Ok(read)) = tokio::time::timeout(Duration::from_secs(1), upstream.read(&mut buffer)).await
                && read > 0
            {
                seen += read;
            }
            // The last one may not be whole.
            let count = seen / 5;
            seen %= 5;
            if count == 0 {
                break;
            }
            most = most.max(count);
            upstream.write_all(&message(b'Z', b"I").repeat(count)).await.unwrap();
        }
        upstream.shutdown().await.unwrap();
        most
    };
    let (spliced, heard, most) = tokio::join!(splicing, saying, answering);
    assert_eq!((heard, spliced.breach), (SAID, None));
    assert!((4096..11_000).contains(&most), "{most}");
}

#[tokio::test(start_paused = true)]
async fn a_budget_that_is_used_up_is_an_end_of_the_relay() {
    let (mut client, mut near_client) = duplex(1 << 20);
    let (_upstream, mut near_upstream) = duplex(1 << 20);
    let (up, down, cut) = (Counter::default(), Counter::default(), CancellationToken::new());
    let memory = Memory::relay();
    let _rest = memory.asked.take(memory.asked.left()).unwrap();
    let limits = bastion_wire::session::text::Limits::new(100, None, &memory);
    let mut session = Followed::new(Session::postgres(Some(limits)), None);
    client.write_all(&message(b'S', &[]).repeat(100)).await.unwrap();
    let spliced = splice(&mut near_client, &mut near_upstream, b"", (&up, &down), Some(&mut session), &cut).await;
    assert_eq!(spliced.end, End::new(Who::Relay, How::Cut));
    assert!(matches!(spliced.breach, Some(Breach::Full(_))));
}

/// A packet of MySQL.
fn packet(sequence: u8, payload: &[u8]) -> Vec<u8> {
    let mut out = bytes::BytesMut::new();
    bastion_wire::mysql::packet::encode(sequence, payload, &mut out);
    out.to_vec()
}

/// A splice of MySQL, and what `far` does with the ends of client and upstream.
async fn spliced_mysql<F: Future>(
    capabilities: u32,
    far: impl FnOnce(tokio::io::DuplexStream, tokio::io::DuplexStream) -> F,
) -> (Spliced, F::Output) {
    let (client, mut near_client) = duplex(1000);
    let (upstream, mut near_upstream) = duplex(1000);
    let (up, down, cut) = (Counter::default(), Counter::default(), CancellationToken::new());
    let mut session = mysql(capabilities);
    let splicing = splice(&mut near_client, &mut near_upstream, b"", (&up, &down), Some(&mut session), &cut);
    tokio::join!(splicing, far(client, upstream))
}

#[tokio::test]
async fn a_change_of_the_user_waits_for_what_is_behind_reports_of_progress() {
    let report = packet(1, b"\xff\xff\xff\x01\x01\x02\x10\x27\x00\x04copy");
    let change = packet(0, b"\x11root\0");
    for (before, behind) in [(true, false), (false, true)] {
        let (spliced, ()) = spliced_mysql(0, |mut client, mut upstream| {
            let (report, change) = (report.clone(), change.clone());
            async move {
                let alter = packet(0, b"\x03alter table t force");
                client.write_all(&alter).await.unwrap();
                // Behind the statement without waiting, or once a report has come.
                if before {
                    client.write_all(&change).await.unwrap();
                }
                upstream.read_exact(&mut vec![0; alter.len()]).await.unwrap();
                upstream.write_all(&report).await.unwrap();
                client.read_exact(&mut vec![0; report.len()]).await.unwrap();
                if behind {
                    client.write_all(&change).await.unwrap();
                }
                tokio::task::yield_now().await;
                let fine = packet(2, &[0, 0, 0, 2, 0, 0, 0]);
                upstream.write_all(&fine).await.unwrap();
                client.read_exact(&mut vec![0; fine.len()]).await.unwrap();
            }
        })
        .await;
        assert_eq!((spliced.stopped.as_ref(), spliced.down), (Some(&change), report.len() as u64 + 11), "{before}");
    }
}

#[tokio::test]
async fn a_request_for_a_file_passes_only_behind_the_statement_that_names_it() {
    use bastion_wire::mysql::capability::LOCAL_FILES;
    let load = packet(0, b"\x03load data local infile '/tmp/rows.csv' into table t");
    let select = packet(0, b"\x03select 1");
    for (capabilities, command, name, granted) in [
        (LOCAL_FILES, &load, &b"/tmp/rows.csv"[..], true),
        (LOCAL_FILES, &load, b"/etc/passwd", false),
        (LOCAL_FILES, &select, b"/tmp/rows.csv", false),
        (0, &load, b"/tmp/rows.csv", false),
    ] {
        let request = packet(1, &[b"\xfb", name].concat());
        // The head alone, and all but the end of the name.
        for cut in [1, 4, 5, request.len() - 1, request.len()] {
            let (spliced, (mut client, mut heard)) = spliced_mysql(capabilities, |mut client, mut upstream| {
                let (request, command) = (request.clone(), command.clone());
                async move {
                    client.write_all(&command).await.unwrap();
                    upstream.read_exact(&mut vec![0; command.len()]).await.unwrap();
                    upstream.write_all(&request[..cut]).await.unwrap();
                    tokio::task::yield_now().await;
                    // The splice may be over.
                    let _rest = upstream.write_all(&request[cut..]).await;
                    if granted {
                        let mut heard = vec![0; request.len()];
                        client.read_exact(&mut heard).await.unwrap();
                        // What the file holds is no command, and the splice goes on.
                        client.write_all(&[packet(2, b"\x11"), packet(3, b"")].concat()).await.unwrap();
                        upstream.read_exact(&mut [0; 9]).await.unwrap();
                        client.shutdown().await.unwrap();
                        upstream.read_to_end(&mut Vec::new()).await.unwrap();
                        return (client, heard);
                    }
                    (client, Vec::new())
                }
            })
            .await;
            // All that has gone to the client is there once its end is closed.
            client.read_to_end(&mut heard).await.unwrap();
            match granted {
                true => assert_eq!((heard, spliced.breach), (request.clone(), None)),
                false => {
                    assert!(heard.is_empty(), "{cut} {heard:?}");
                    assert_eq!(spliced.end, End::new(Who::Database, How::Cut));
                    let Some(Breach::File(refused)) = spliced.breach else { panic!("{:?}", spliced.breach) };
                    assert!(name.starts_with(refused.as_bytes()), "{refused}");
                }
            }
        }
    }
}

/// A pair of sockets.
async fn sockets() -> (tokio::net::TcpStream, tokio::net::TcpStream) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let near = tokio::net::TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    (near, listener.accept().await.unwrap().0)
}

fn reset(socket: tokio::net::TcpStream) {
    socket2::SockRef::from(&socket).set_linger(Some(Duration::ZERO)).unwrap();
}

/// What the far ends do, over sockets: how it ended, and what the client has read.
async fn over_sockets(far: impl AsyncFnOnce(&mut tokio::net::TcpStream, tokio::net::TcpStream)) -> (Spliced, Vec<u8>) {
    let (mut client, mut near_client) = sockets().await;
    let (upstream, mut near_upstream) = sockets().await;
    let (up, down) = (Counter::default(), Counter::default());
    let cut = CancellationToken::new();
    let both = async {
        far(&mut client, upstream).await;
        let mut read = Vec::new();
        // The reset behind it is not of interest here.
        let _end = client.read_to_end(&mut read).await;
        read
    };
    let copying = async {
        let copied = splice(&mut near_client, &mut near_upstream, b"", (&up, &down), None, &cut).await;
        drop((near_client, near_upstream));
        copied
    };
    let (spliced, read) = tokio::join!(copying, both);
    (spliced, read)
}

#[tokio::test]
async fn what_a_database_says_before_its_reset_reaches_the_client() {
    let (spliced, read) = over_sockets(async |_, mut upstream| {
        upstream.write_all(b"the last words").await.unwrap();
        reset(upstream);
    })
    .await;
    assert_eq!((spliced.end, spliced.notice), (End::new(Who::Database, How::Reset), Notice::Reset));
    assert_eq!((read.as_slice(), spliced.down), (&b"the last words"[..], 14));
}

#[tokio::test]
async fn a_client_that_goes_on_sending_still_reads_what_a_database_said_at_its_end() {
    let (spliced, read) = over_sockets(async |client, mut upstream| {
        upstream.write_all(b"no more").await.unwrap();
        drop(upstream);
        // The second is refused by the socket of the database.
        for _ in 0..20 {
            client.write_all(b"statement").await.unwrap();
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    assert_eq!(spliced.end.who, Who::Database);
    assert_eq!(read, b"no more");
}

#[tokio::test]
async fn what_a_client_says_before_its_reset_reaches_the_database() {
    let (mut client, mut near_client) = sockets().await;
    let (mut upstream, mut near_upstream) = sockets().await;
    let (up, down) = (Counter::default(), Counter::default());
    let cut = CancellationToken::new();
    upstream.write_all(b"unread").await.unwrap();
    client.write_all(b"commit").await.unwrap();
    reset(client);
    let spliced = splice(&mut near_client, &mut near_upstream, b"", (&up, &down), None, &cut).await;
    assert_eq!((spliced.end, spliced.notice), (End::new(Who::Client, How::Reset), Notice::Nothing));
    let mut said = [0; 6];
    upstream.read_exact(&mut said).await.unwrap();
    assert_eq!((&said, spliced.up), (b"commit", 6));
}
