//! Conversations played through by hand, cut in every way.

use std::sync::Arc;

use bytes::BytesMut;

use super::*;
use crate::memory::Memory;
use crate::mysql::local_infile::SentFile;
use crate::mysql::packet;
use crate::session::text::{Key, Kind as How};

const FINE: &[u8] = &[0, 0, 0, 2, 0, 0, 0];
const END: &[u8] = &[0xfe, 0, 0, 2, 0];
const COLUMN: &[u8] = b"\x03def\0\0\0";
const NO: &[u8] = b"\xff\x28\x04#42000no";
const DELETE: &str = "delete from orders where id = ?";

fn agreed(server: Server) -> Agreed {
    Agreed { capabilities: 0, extended: 0, server, stops_at_reset: false }
}

fn packet(number: u8, parts: &[&[u8]]) -> Vec<u8> {
    let mut out = BytesMut::new();
    packet::encode(number, &parts.concat(), &mut out);
    out.to_vec()
}

/// Which side sends what.
#[derive(Clone)]
enum Side {
    Up(Vec<u8>),
    Down(Vec<u8>),
}
use Side::{Down, Up};

fn query(sql: &str) -> Side {
    Up(packet(0, &[b"\x03", sql.as_bytes()]))
}

fn prepare(sql: &str) -> Vec<u8> {
    packet(0, &[b"\x16", sql.as_bytes()])
}

fn execute(number: u32) -> Vec<u8> {
    packet(0, &[b"\x17", &number.to_le_bytes(), &[0, 1, 0, 0, 0]])
}

fn close(number: u32) -> Vec<u8> {
    packet(0, &[b"\x19", &number.to_le_bytes()])
}

/// COM_STMT_PREPARE_OK, one parameter, no columns, and what follows it.
fn prepared(number: u32) -> Vec<u8> {
    let head = [&[0][..], &number.to_le_bytes(), &[0, 0, 1, 0, 0, 0, 0]].concat();
    [packet(1, &[&head]), packet(2, &[COLUMN]), packet(3, &[END])].concat()
}

fn error(number: u16) -> Vec<u8> {
    packet(1, &[b"\xff", &number.to_le_bytes(), b"#HY000no"])
}

/// One direction of a session, which gives again what did not go on.
#[derive(Default)]
struct Held(Vec<u8>);

impl Held {
    fn pass(&mut self, piece: &[u8], follow: impl FnOnce(&[u8]) -> Pass) -> Option<Stop> {
        self.0.extend_from_slice(piece);
        let Pass { forward, stop } = follow(&self.0);
        assert!(stop.is_some() || self.0.len() - forward < 30, "only the start of a packet may be held back");
        self.0.drain(..forward);
        stop
    }
}

/// What is told of a conversation, in pieces of `cut`, and how it stops.
fn played(mut session: Session, sides: &[Side], cut: usize) -> (Vec<Event>, Option<Stop>) {
    let (mut events, mut up, mut down) = (Vec::new(), Held::default(), Held::default());
    for side in sides {
        let (bytes, held, is_client) = match side {
            Up(bytes) => (bytes, &mut up, true),
            Down(bytes) => (bytes, &mut down, false),
        };
        for piece in bytes.chunks(cut) {
            let stop = held.pass(piece, |bytes| match is_client {
                true => session.client(bytes, &mut events),
                false => session.server(bytes, &mut events),
            });
            if stop.is_some() {
                return (events, stop);
            }
        }
    }
    session.end(&mut events);
    (events, None)
}

fn asked() -> Budget {
    Memory::relay().asked
}

fn audited(server: Server) -> Session {
    Session::new(agreed(server), &asked(), Some(Limits::new(64, None, &Memory::relay())))
}

/// The records, the same however the conversation is cut: kind, name and text, and whether it was taken back.
fn records(server: Server, sides: &[Side]) -> Vec<(How, Option<String>, Option<String>, bool)> {
    let (whole, stop) = played(audited(server), sides, usize::MAX);
    assert_eq!(stop, None);
    for cut in [1, 2, 3, 5, 8, 13] {
        assert_eq!(played(audited(server), sides, cut), (whole.clone(), None), "in pieces of {cut}");
    }
    let mut records = Vec::new();
    for event in whole {
        match event {
            Event::Statement { number, statement } => {
                let sql = statement.sql().map(str::to_owned);
                records.push((statement.kind, statement.name, sql, false));
                assert_eq!(usize::try_from(number), Ok(records.len()));
            }
            Event::NotRun { number } => {
                let record = &mut records[usize::try_from(number).unwrap() - 1];
                assert!(!std::mem::replace(&mut record.3, true));
            }
            Event::File(_) => {}
        }
    }
    records
}

/// Texts of the executions, and whether they were taken back.
fn executed(server: Server, sides: &[Side]) -> Vec<(Option<String>, bool)> {
    let records = records(server, sides).into_iter();
    records.filter(|(kind, ..)| *kind == How::Execute).map(|(_, _, sql, not_run)| (sql, not_run)).collect()
}

fn ran(sql: &str) -> (Option<String>, bool) {
    (Some(sql.to_owned()), false)
}

const UNKNOWN: (Option<String>, bool) = (None, false);
const REFUSED: (Option<String>, bool) = (None, true);

#[test]
fn statements_are_told_with_their_words() {
    let sides = [
        query("select 1"),
        Down([packet(1, &[&[1]]), packet(2, &[COLUMN]), packet(3, &[END]), packet(4, &[b"\x011"])].concat()),
        Down(packet(5, &[END])),
        Up(prepare(DELETE)),
        Down(prepared(7)),
        Up(packet(0, &[b"\x18", &7_u32.to_le_bytes(), b"\0\0\x03not SQL"])),
        Up(execute(7)),
        Down(packet(1, &[FINE])),
        Up(prepare("syntax error")),
        Down(packet(1, &[NO])),
        Up(packet(0, &[b"\x02scratch"])),
        Down(packet(1, &[FINE])),
        Up(packet(0, &[b"\x0c\x11\0\0\0"])),
        Down(packet(1, &[FINE])),
        Up(packet(0, &[b"\x0e"])),
        Down(packet(1, &[FINE])),
        Up(packet(0, &[b"\x1f"])),
        Down(packet(1, &[FINE])),
        Up(execute(7)),
        Down(error(1243)),
        Up(packet(0, &[b"\xef"])),
        Down(packet(1, &[NO])),
        Up(packet(0, &[b"\x01"])),
    ];
    let text = |text: &str| Some(text.to_owned());
    for server in [Server::MariaDb, Server::MySql] {
        let expected = [
            (How::Query, None, text("select 1"), false),
            (How::Prepare, None, text(DELETE), false),
            (How::Execute, text("7"), text(DELETE), false),
            (How::Prepare, None, text("syntax error"), true),
            (How::Command, text("init_db"), text("scratch"), false),
            (How::Command, text("process_kill"), text("17"), false),
            (How::Command, text("reset_connection"), None, false),
            (How::Execute, text("7"), None, true),
            (How::Command, text("0xef"), None, false),
        ];
        assert_eq!(records(server, &sides), expected);
    }
}

#[test]
fn an_empty_command_has_an_answer_of_its_own() {
    let (evil, good) = ("insert into t values (666)", "select 1");
    let sides = [
        Up([packet(0, &[]), prepare(evil), prepare(good)].concat()),
        Down([packet(1, &[b"\xff\x17\x04#08S01Unknown command"]), prepared(5), prepared(6)].concat()),
        Up(execute(5)),
        Down(packet(1, &[FINE])),
        Up(execute(6)),
        Down(packet(1, &[FINE])),
    ];
    assert_eq!(executed(Server::MySql, &sides), [ran(evil), ran(good)]);
}

#[test]
fn the_last_statement_of_mariadb_is_the_last_one_that_was_prepared() {
    const LAST: u32 = u32::MAX;
    let begin = [Up(prepare("select 1")), Down(prepared(5))];
    let then = |sides: &[Side]| executed(Server::MariaDb, &[&begin[..], sides].concat());
    assert_eq!(then(&[Up(execute(LAST))]), [ran("select 1")]);
    // One that is refused for its text ends it, one that is refused before does not; the first number still stands.
    for (number, expected) in [(1064, UNKNOWN), (1461, ran("select 1"))] {
        let refused = [Up(prepare("select 2")), Down(error(number)), Up(execute(LAST)), Down(error(1243))];
        assert_eq!(then(&refused), [expected]);
        assert_eq!(then(&[&refused[..], &[Up(execute(5))]].concat())[1], ran("select 1"));
    }
    // It is not known while there is no answer.
    let pipelined = [Up(prepare("select 2")), Up(execute(LAST)), Down(prepared(6)), Down(packet(1, &[FINE]))];
    assert_eq!(then(&pipelined), [UNKNOWN]);
    assert_eq!(then(&[&pipelined[..], &[Up(execute(LAST))]].concat())[1], ran("select 2"));
    // What is closed is gone, by either name, also where the server has not read it.
    for closed in [5, LAST] {
        let closed = [Up(close(closed)), Up(execute(LAST)), Up(execute(5)), Down(error(1243)), Down(error(1243))];
        assert_eq!(then(&closed), [UNKNOWN, REFUSED]);
        let behind = [&[query("select 2")], &closed[..3], &[Down(packet(1, &[FINE]))], &closed[3..]].concat();
        assert_eq!(then(&behind), [UNKNOWN, REFUSED]);
    }
    // An ordinary number elsewhere.
    let sides = [&begin[..], &[Up(execute(LAST)), Down(error(1243))]].concat();
    assert_eq!(executed(Server::MySql, &sides), [REFUSED]);
}

#[test]
fn a_number_stands_for_its_text_from_the_answer_on_to_its_end() {
    let begin = [Up(prepare("select 1")), Down(prepared(5))];
    let then = |sides: &[Side]| executed(Server::MySql, &[&begin[..], sides].concat());
    // Guessed.
    assert_eq!(
        then(&[Up(prepare("select 2")), Up(execute(6)), Down(prepared(6)), Down(packet(1, &[FINE]))]),
        [UNKNOWN]
    );
    // An error like that of an unknown number, out of a procedure, takes nothing back.
    assert_eq!(then(&[Up(execute(5)), Down(error(1243))]), [ran("select 1")]);
    let guessed = [Up(prepare("call p()")), Up(execute(6)), Up(close(6)), Down(prepared(6)), Down(error(1243))];
    assert_eq!(then(&guessed), [UNKNOWN]);
    assert_eq!(then(&[&guessed[..], &[Up(execute(6)), Down(error(1243))]].concat()), [UNKNOWN, REFUSED]);
    // Closed before the answer is there; closed, and prepared anew with the same number.
    let closed = [Up(prepare("select 2")), Up(close(6)), Up(close(5)), Down(prepared(6))];
    assert_eq!(then(&[&closed[..], &[Up(execute(6)), Up(execute(5))]].concat()), [UNKNOWN, UNKNOWN]);
    let anew = [Up(prepare("select 3")), Down(prepared(5)), Up(execute(5))];
    assert_eq!(then(&[&closed[..], &anew].concat()), [ran("select 3")]);
    // A reset ends it, once it has happened.
    let reset = [Up(packet(0, &[b"\x1f"])), Up(execute(5)), Down(packet(1, &[FINE])), Down(error(1243))];
    assert_eq!(then(&reset), [REFUSED]);
}

#[test]
fn of_many_statements_the_oldest_is_forgotten_and_never_taken_for_unknown() {
    let mut sides = Vec::new();
    for number in 0..300 {
        sides.extend([Up(prepare(&format!("select {number}"))), Down(prepared(number))]);
    }
    for number in [299, 44, 43] {
        sides.extend([Up(execute(number)), Down(error(1243))]);
    }
    assert_eq!(executed(Server::MySql, &sides), [ran("select 299"), ran("select 44"), UNKNOWN]);
}

#[test]
fn what_waits_when_the_server_ends_the_session_has_not_run() {
    let last = packet(0, &[b"\xff\xbf\x0f#HY000The client was disconnected by the server because of inactivity"]);
    let sides =
        [Up(prepare("select 1")), Down(prepared(1)), query("delete from t"), Up(execute(1)), Down(last.clone())];
    let records = records(Server::MySql, &[&sides[..], &[query("select 2")]].concat());
    assert_eq!(records.iter().map(|record| record.3).collect::<Vec<_>>(), [false, true, true, true]);
    // Once.
    let (_, stop) = played(audited(Server::MySql), &[Down(last.clone()), Down(last)], 7);
    assert!(matches!(stop, Some(Stop::OutOfProtocol(_))));
    // The same behind a goodbye of the client.
    let sides = [query("select 1"), Up(packet(0, &[b"\x01"])), query("select 2"), Down(packet(1, &[FINE]))];
    let records = records_of(&sides);
    assert_eq!(records, [false, true]);
}

fn records_of(sides: &[Side]) -> Vec<bool> {
    records(Server::MySql, sides).iter().map(|record| record.3).collect()
}

#[test]
fn who_leaves_the_protocol_is_stopped_before_it_goes_on() {
    let select = packet(0, &[b"\x03select 1"]);
    for (from, sides) in [
        // A command with a number; a part of a long one with another; numbers of statements that are cut short.
        ("client", vec![Up(packet(1, &[b"\x03select 1"]))]),
        ("client", vec![Up(close(7)[..7].to_vec()), Up(packet(0, &[b"\x19\x07\0\0"]))]),
        ("client", vec![Up(packet(0, &[b"\x19\x07\0\0"]))]),
        ("client", vec![Up(packet(0, &[b"\x18\x07\0\0\0\0"]))]),
        // An answer to nothing; one that does not fit; a number that is left out.
        ("database", vec![Down(packet(1, &[FINE]))]),
        ("database", vec![Up(packet(0, &[b"\x0e"])), Down(packet(1, &[b"\x01"]))]),
        ("database", vec![Up(prepare("select 1")), Down(packet(1, &[FINE]))]),
        ("database", vec![Up(select.clone()), Down(packet(2, &[FINE]))]),
        ("database", vec![Up(select), Down(packet(1, &[FINE])), Down(packet(1, &[FINE]))]),
    ] {
        let (events, stop) = played(audited(Server::MySql), &sides, usize::MAX);
        let Some(Stop::OutOfProtocol(error)) = &stop else { panic!("{from} {stop:?} {events:?}") };
        assert_eq!(error.from, from, "{error}");
        for cut in [1, 2, 3] {
            assert_eq!(played(audited(Server::MySql), &sides, cut), (events.clone(), stop.clone()));
        }
    }
}

#[test]
fn a_command_of_several_packets_is_one_and_its_answer_goes_on_with_its_number() {
    let mut text = b"\x03select '".to_vec();
    text.resize(PAYLOAD_MAX, b'x');
    let long = |end: &[u8]| Up([packet(0, &[&text]), packet(1, &[end])].concat());
    for end in [&b"'"[..], b""] {
        let sides = [long(end), Down(packet(2, &[FINE])), query("select 2"), Down(packet(1, &[FINE]))];
        let (events, stop) = played(audited(Server::MySql), &sides, 1 << 20);
        assert_eq!((events.len(), stop), (2, None));
        let Event::Statement { statement, .. } = &events[0] else { panic!("{:?}", events[0]) };
        let bytes = u64::try_from(PAYLOAD_MAX - 1 + end.len()).unwrap();
        assert_eq!(statement.text.as_ref().unwrap().bytes(), bytes);
    }
    // What continues it is no command, and is not told before it is whole.
    let sides = [Up([packet(0, &[&text]), packet(1, &[b"\x11"])].concat())];
    assert_eq!(played(audited(Server::MySql), &sides, 1 << 20).0.len(), 1);
    assert_eq!(played(audited(Server::MySql), &[Up(packet(0, &[&text]))], 1 << 20), (Vec::new(), None));
    // A row of such a length is one message.
    let mut session = audited(Server::MySql);
    let text = ErrorText::default();
    session.client(&packet(0, &[b"\x03select 1"]), &mut Vec::new());
    let row = vec![b'x'; PAYLOAD_MAX];
    let begin = [packet(1, &[&[1]]), packet(2, &[COLUMN]), packet(3, &[END]), packet(4, &[&row])].concat();
    assert_eq!(session.server(&begin, &mut Vec::new()).stop, None);
    assert_eq!(session.last_words(&text), None);
    assert_eq!(session.server(&packet(5, &[]), &mut Vec::new()).stop, None);
    assert_eq!(session.last_words(&text).unwrap()[3], 6);
}

#[test]
fn the_commands_of_the_relay_stop_the_client_and_wait_for_what_is_before_them() {
    for (stops_at_reset, command, stops) in [(false, 0x11, true), (false, 0x1f, false), (true, 0x1f, true)] {
        let mut session = Session::new(Agreed { stops_at_reset, ..agreed(Server::MariaDb) }, &asked(), None);
        let command = packet(0, &[&[command], b"root\0"]);
        let before = [packet(0, &[]), packet(0, &[b"\x0e"])].concat();
        let pass = session.client(&[&before[..], &command].concat(), &mut Vec::new());
        if !stops {
            assert_eq!((pass.forward, pass.stop), (before.len() + command.len(), None));
            continue;
        }
        assert_eq!((pass.forward, pass.stop, session.is_idle()), (before.len(), Some(Stop::Command), false));
        let answers = [packet(1, &[NO]), packet(1, &[FINE])].concat();
        for end in 0..answers.len() {
            let mut session = Session::new(Agreed { stops_at_reset, ..agreed(Server::MariaDb) }, &asked(), None);
            session.client(&before, &mut Vec::new());
            session.server(&answers[..end], &mut Vec::new());
            assert!(!session.is_idle(), "{end}");
        }
        session.server(&answers, &mut Vec::new());
        assert!(session.is_idle());
    }
}

#[test]
fn a_session_that_starts_anew_knows_no_statement_and_says_so() {
    let (mut session, mut events) = (audited(Server::MariaDb), Vec::new());
    session.client(&prepare(DELETE), &mut events);
    session.server(&prepared(7), &mut events);
    session.answered(&packet(0, &[b"\x11root\0"]), &mut events);
    session.client(&execute(7), &mut events);
    session.server(&error(1243), &mut events);
    let told = |event: &Event| match event {
        Event::Statement { statement, .. } => (statement.kind, statement.name.clone(), statement.text.is_some()),
        other => panic!("{other:?}"),
    };
    assert_eq!(told(&events[1]), (How::Command, Some("change_user".to_owned()), false));
    assert_eq!(told(&events[2]), (How::Execute, Some("7".to_owned()), false));
    assert_eq!(events[3], Event::NotRun { number: 3 });
}

#[test]
fn last_words_have_the_number_that_the_client_waits_for() {
    let number = |sides: &[Side]| {
        let (mut session, mut events) = (audited(Server::MySql), Vec::new());
        for side in sides {
            match side {
                Up(bytes) => session.client(bytes, &mut events),
                Down(bytes) => session.server(bytes, &mut events),
            };
        }
        session.last_words(&ErrorText::default()).map(|words| words[3])
    };
    let select = query("select 1");
    let row = Down([packet(1, &[&[1]]), packet(2, &[COLUMN]), packet(3, &[END]), packet(4, &[b"\x011"])].concat());
    assert_eq!(number(&[]), Some(1));
    assert_eq!(number(std::slice::from_ref(&select)), Some(1));
    assert_eq!(number(&[select.clone(), row.clone()]), Some(5));
    assert_eq!(number(&[select.clone(), row.clone(), Down(packet(5, &[END])[..6].to_vec())]), Some(5));
    assert_eq!(number(&[select.clone(), row.clone(), Down(packet(5, &[b"\x012"])[..5].to_vec())]), None);
    assert_eq!(number(&[select.clone(), row.clone(), Down(packet(5, &[&[0xfe, 0, 0, 10, 0]]))]), Some(6));
    assert_eq!(number(&[select.clone(), row.clone(), Down(packet(5, &[END]))]), Some(1));
    // The next command waits.
    assert_eq!(number(&[select.clone(), row, select, Down(packet(5, &[END]))]), Some(1));
}

#[test]
fn a_backslash_is_read_as_the_server_does_or_only_the_verb_is_kept() {
    const PLAIN: u16 = 0x02;
    const NO_ESCAPES: u16 = 0x0202;
    let limits = Limits::new(64, Some(Arc::new(Key::new(&[7; 32]))), &Memory::relay());
    let statement = packet(0, &[b"\x03", br"select '\' ; delete from orders; -- '"]);
    let said = |status: u16| packet(1, &[&[0, 0, 0], &status.to_le_bytes(), &[0, 0]]);
    for (login, before, expected) in [
        // Before the first answer nothing is known.
        (PLAIN, vec![], "select"),
        // The mode of all sessions may be hidden by a procedure too.
        (NO_ESCAPES, vec![(b"\x03", said(PLAIN))], "select"),
        (NO_ESCAPES, vec![(b"\x1f", said(NO_ESCAPES)), (b"\x03", said(PLAIN))], "select"),
        (PLAIN, vec![(b"\x0e", said(PLAIN))], "select ?"),
        // In the other mode, and when it is said to be over: a procedure may have said so.
        (PLAIN, vec![(b"\x0e", said(NO_ESCAPES))], "select"),
        (PLAIN, vec![(b"\x03", said(NO_ESCAPES)), (b"\x03", said(PLAIN))], "select"),
        // It may have been set before the error.
        (PLAIN, vec![(b"\x03", packet(1, &[NO])), (b"\x03", said(PLAIN))], "select"),
        (PLAIN, vec![(b"\x03", said(NO_ESCAPES)), (b"\x1f", said(PLAIN)), (b"\x0e", said(PLAIN))], "select ?"),
    ] {
        let mut session = Session::new(agreed(Server::MySql), &asked(), Some(limits.clone()));
        session.logged_in(&packet(2, &[&[0, 0, 0], &login.to_le_bytes(), &[0, 0]]));
        for (command, answer) in &before {
            session.client(&packet(0, &[*command]), &mut Vec::new());
            session.server(answer, &mut Vec::new());
        }
        // The second one waits behind the first, which may change the mode.
        let mut events = Vec::new();
        session.client(&statement.repeat(2), &mut events);
        let sql = |event: &Event| match event {
            Event::Statement { statement, .. } => statement.sql().unwrap().to_owned(),
            other => panic!("{other:?}"),
        };
        assert_eq!((sql(&events[0]).as_str(), sql(&events[1]).as_str()), (expected, "select"), "{before:?}");
    }
}

#[test]
fn a_text_behind_attributes_is_told_if_there_are_none() {
    let agreed = Agreed { capabilities: QUERY_ATTRIBUTES, ..agreed(Server::MySql) };
    for (attributes, expected) in [(&b"\0\x01"[..], Some("select 1")), (b"\x01\x01\0\x01\x03\0\x01a\x011", None)] {
        let sides = [Up(packet(0, &[b"\x03", attributes, b"select 1"])), Down(packet(1, &[FINE]))];
        for cut in [1, 2, 100] {
            let session = Session::new(agreed, &asked(), Some(Limits::new(64, None, &Memory::relay())));
            let (events, stop) = played(session, &sides, cut);
            let Event::Statement { statement, .. } = &events[0] else { panic!("{events:?}") };
            assert_eq!((statement.sql(), stop), (expected, None));
        }
    }
}

#[test]
fn a_file_passes_only_behind_the_statement_that_names_it_and_is_no_command() {
    let load = query("load data local infile 'rows.csv' into table t");
    let request = Down(packet(1, &[b"\xfbrows.csv"]));
    let rows = Up([packet(2, &[b"\x03delete"]), packet(3, &[])].concat());
    let done = Down(packet(4, &[FINE]));
    let may = |server| {
        Session::new(
            Agreed { capabilities: LOCAL_FILES, ..agreed(server) },
            &asked(),
            Some(Limits::new(64, None, &Memory::relay())),
        )
    };
    let sides = [load.clone(), request.clone(), rows, done, query("select 1"), Down(packet(1, &[FINE]))];
    for cut in 1..40 {
        let (events, stop) = played(may(Server::MySql), &sides, cut);
        assert_eq!((events.len(), stop), (3, None), "{cut}");
        let sent = SentFile { name: "rows.csv".to_owned(), bytes: 7, complete: true };
        assert_eq!(events[1], Event::File(sent), "{cut}");
    }
    let unfinished = SentFile { name: "rows.csv".to_owned(), bytes: 7, complete: false };
    let cut_short = [load.clone(), request.clone(), Up(packet(2, &[b"\x03delete"]))];
    assert_eq!(played(may(Server::MySql), &cut_short, 3).0.last(), Some(&Event::File(unfinished)));
    // A command in its place is refused by the server too.
    let (_, stop) = played(may(Server::MySql), &[load.clone(), request.clone(), query("select 1")], 3);
    assert!(matches!(stop, Some(Stop::OutOfProtocol(error)) if error.from == "client"));
    // Nobody has agreed; another statement; another file; not the only command.
    let ping = Up(packet(0, &[b"\x0e"]));
    for (session, sides) in [
        (audited(Server::MySql), vec![load.clone(), request.clone()]),
        (may(Server::MySql), vec![query("select 'rows.csv'"), request.clone()]),
        (may(Server::MySql), vec![ping.clone(), Down(packet(1, &[b"\xfbrows.csv"]))]),
        (may(Server::MySql), vec![load.clone(), Down(packet(1, &[b"\xfb/etc/passwd"]))]),
        (may(Server::MySql), vec![load.clone(), ping.clone(), request.clone()]),
        (may(Server::MySql), vec![ping, load, Down(packet(1, &[FINE])), request]),
    ] {
        let stop = played(session, &sides, usize::MAX).1;
        assert!(matches!(stop, Some(Stop::File(_))), "{stop:?}");
    }
}

#[test]
fn a_request_for_a_file_is_held_from_its_first_byte_on() {
    let request = packet(1, &[b"\xfbrows.csv"]);
    for end in 0..request.len() {
        let mut session = Session::new(Agreed { capabilities: LOCAL_FILES, ..agreed(Server::MySql) }, &asked(), None);
        session.client(&packet(0, &[b"\x03load data local infile 'rows.csv' into table t"]), &mut Vec::new());
        let pass = session.server(&request[..end], &mut Vec::new());
        assert_eq!((pass.forward, pass.stop, session.withholds()), (0, None, end > 4), "{end}");
        let pass = session.server(&request, &mut Vec::new());
        assert_eq!((pass.forward, pass.stop, session.withholds()), (request.len(), None, false));
        assert_eq!(session.last_words(&ErrorText::default()).unwrap()[3], 2);
    }
}

#[test]
fn a_client_that_does_not_wait_is_held_and_ended_at_last() {
    let mut session = Session::new(agreed(Server::MySql), &asked(), None);
    let ping = packet(0, &[b"\x0e"]);
    session.client(&ping.repeat(FULL - 1), &mut Vec::new());
    assert!(!session.is_full());
    session.client(&ping, &mut Vec::new());
    assert!(session.is_full());
    session.server(&packet(1, &[FINE]), &mut Vec::new());
    assert!(!session.is_full());
    let pass = session.client(&ping.repeat(ASKED_MAX), &mut Vec::new());
    assert!(matches!(pass.stop, Some(Stop::OutOfProtocol(_))));
    assert_eq!(pass.forward, (ASKED_MAX - FULL + 1) * ping.len());
}

#[test]
fn the_relay_has_one_budget_for_commands_without_an_answer_audited_or_not() {
    let memory = Memory::relay();
    let (whole, ping) = (memory.asked.left(), packet(0, &[b"\x0e"]));
    let limits = || Some(Limits::new(64, None, &memory));
    let mut sessions = [limits(), None].map(|limits| Session::new(agreed(Server::MySql), &memory.asked, limits));
    let mut left = whole;
    for session in &mut sessions {
        // The first ones are the connection's own.
        session.client(&ping.repeat(64), &mut Vec::new());
        assert_eq!(memory.asked.left(), left);
        session.client(&ping.repeat(FULL - 64), &mut Vec::new());
        assert!(memory.asked.left() < left);
        left = memory.asked.left();
    }
    let rest = memory.asked.take(left).unwrap();
    for session in &mut sessions {
        let pass = session.client(&ping.repeat(100), &mut Vec::new());
        let Some(Stop::Full(full)) = pass.stop else { panic!("{pass:?}") };
        assert_eq!(full.to_string(), "the memory for messages that wait for their answers is used up: 8192 KiB");
    }
    drop(sessions);
    drop(rest);
    assert_eq!(memory.asked.left(), whole);
}

#[test]
fn a_replica_acknowledges_events_in_between() {
    let sides = [
        Up(packet(0, &[b"\x12\x04\0\0\0\0\0\x01\0\0\0binlog"])),
        Down([packet(1, &[b"\0event"]), packet(2, &[b"\0event"])].concat()),
        Up(packet(3, &[b"\xef\x04\0\0\0\0\0\0\0binlog"])),
        Down([packet(3, &[b"\0event"]), packet(4, &[END])].concat()),
        query("select 1"),
        Down(packet(1, &[FINE])),
    ];
    let words: Vec<_> = records(Server::MySql, &sides).into_iter().map(|record| record.0).collect();
    assert_eq!(words, [How::Command, How::Query]);
    // Before there are any, it is a command like others.
    let stop = played(audited(Server::MySql), &[sides[0].clone(), sides[2].clone()], 5).1;
    assert!(matches!(stop, Some(Stop::OutOfProtocol(_))));
}
