use proptest::prelude::*;

use super::*;
use crate::wire::mysql::packet::{self, ErrPacket};
use crate::wire::pg::message::{self, ErrorFields};

fn text() -> ErrorText {
    let (sqlstate, message) = ("57P01".to_owned(), "it ends".to_owned());
    ErrorText { number: 1053, sqlstate, message, detail: String::new(), hint: "connect again".to_owned() }
}

fn packets(payloads: &[(u8, &[u8])]) -> Vec<u8> {
    let mut out = BytesMut::new();
    for (sequence, payload) in payloads {
        packet::encode(*sequence, payload, &mut out);
    }
    out.to_vec()
}

/// The number of the last words behind these packets.
fn number(payloads: &[(u8, &[u8])]) -> u8 {
    let mut stream = Downstream::mysql(true);
    stream.pass(&packets(payloads));
    let said = stream.last_words(&text()).expect("between packets");
    let said = packet::decode(&mut BytesMut::from(&said[..])).unwrap().unwrap();
    assert_eq!(ErrPacket::parse(&said.payload).message, "it ends. connect again");
    said.sequence
}

#[test]
fn postgres_is_told_between_messages_and_not_within_one() {
    let mut out = BytesMut::new();
    message::encode(b'D', b"row", &mut out);
    message::encode(b'I', b"", &mut out);
    for end in 0..=out.len() {
        let mut stream = Downstream::postgres();
        stream.pass(&out[..end]);
        assert_eq!(stream.last_words(&text()).is_some(), [0, 8, 13].contains(&end), "{end}");
    }
    let stream = Downstream::postgres();
    for (said, tag, severity) in
        [(stream.last_words(&text()).unwrap(), b'E', "FATAL"), (stream.notice(&text()).unwrap(), b'N', "WARNING")]
    {
        let said = message::decode(&mut BytesMut::from(&said[..])).unwrap().unwrap();
        let fields = ErrorFields::parse(&said.body);
        assert_eq!((said.tag, fields.severity.as_str(), fields.message.as_str()), (tag, severity, "it ends"));
    }
}

#[test]
fn postgres_is_followed_from_its_first_byte_if_it_stays_in_clear() {
    let mut out = BytesMut::from(&b"NN"[..]);
    message::encode(b'R', b"\0\0\0\0", &mut out);
    message::encode(b'S', b"a\0b\0", &mut out);
    for end in 0..=out.len() {
        let mut stream = Downstream::postgres_login();
        for byte in &out[..end] {
            stream.pass(&[*byte]);
        }
        let mut whole = Downstream::postgres_login();
        whole.pass(&out[..end]);
        assert_eq!(whole, stream);
        assert_eq!(stream.last_words(&text()).is_some(), [0, 1, 2, 11, 20].contains(&end), "{end}");
    }
    for encrypted in [&b"S"[..], b"NG", b"S\x16\x03\x03"] {
        let mut stream = Downstream::postgres_login();
        stream.pass(encrypted);
        assert!(stream.last_words(&text()).is_none(), "{encrypted:?}");
    }
}

#[test]
fn mysql_is_followed_from_its_greeting_if_it_stays_in_clear() {
    const GREETING: &[u8] = b"\x0a8.4.0\0";
    const FINE: &[u8] = &[OK, 0, 0, 2, 0, 0, 0];
    let number = |payloads: &[(u8, &[u8])]| {
        let mut stream = Downstream::mysql_login();
        stream.pass(&packets(payloads));
        stream.last_words(&text()).map(|said| said[3])
    };
    assert_eq!(number(&[(0, GREETING)]), Some(2));
    assert_eq!(number(&[(0, GREETING), (2, b"\xfemysql_native_password\0")]), Some(4));
    // Idle.
    assert_eq!(number(&[(0, GREETING), (2, FINE)]), Some(1));
    assert_eq!(number(&[(0, GREETING), (2, b"\xfex\0"), (4, b"\x01\x03"), (5, FINE)]), Some(1));
    // In the middle of an answer.
    assert_eq!(number(&[(0, GREETING), (2, FINE), (1, &[1]), (2, b"\x03def")]), Some(3));
    // A ServerHello where an answer is due.
    let mut stream = Downstream::mysql_login();
    stream.pass(&packets(&[(0, GREETING)]));
    stream.pass(b"\x16\x03\x03\0\x7a\x02\0\0\x76");
    assert!(stream.last_words(&text()).is_none());
}

#[test]
fn a_length_that_no_message_has_is_never_interrupted() {
    let mut stream = Downstream::postgres();
    stream.pass(b"D\0\0\0\x03D\0\0\0\x04");
    assert!(stream.last_words(&text()).is_none());
}

#[test]
fn mysql_gets_the_number_that_its_client_waits_for() {
    const ROW: &[u8] = b"\x011";
    const END: &[u8] = &[0xfe, 0, 0, 2, 0];
    const FINE: &[u8] = &[OK, 0, 0, 2, 0, 0, 0];
    let column: &[u8] = b"\x03def\0\0\0";
    // Idle: after the login, a statement, a result, an error, a procedure.
    for idle in [
        &[][..],
        &[(1, FINE)],
        &[(1, &[1]), (2, column), (3, END), (4, ROW), (5, END)],
        &[(1, &[1]), (2, column), (3, ROW), (4, b"\xffoh")],
        &[(1, &[1]), (2, column), (3, ROW), (4, &[0xfe, 0, 0, 10, 0]), (5, FINE)],
        // A prepared statement with one column and one parameter; statistics; an answer that was not understood before.
        &[(1, &[OK, 9, 0, 0, 0, 1, 0, 1, 0, 0, 0, 0]), (2, column), (3, column)],
        &[(1, b"Uptime: 7  Threads: 1")],
        &[(1, &[1]), (2, column), (1, FINE)],
        // Another user, with a password or without.
        &[(1, b"\xfecaching_sha2_password\0"), (3, b"\x01\x03"), (4, FINE)],
        &[(1, b"\xfemysql_native_password\0"), (3, FINE), (1, FINE)],
        &[(1, b"\xfemysql_native_password\0"), (3, b"\xff\x19\x04#42000no")],
    ] {
        assert_eq!(number(idle), 1, "{idle:?}");
    }
    // In the middle of an answer, also where a row of a prepared statement looks like an OK packet.
    assert_eq!(number(&[(1, &[1]), (2, column)]), 3);
    assert_eq!(number(&[(1, &[1]), (2, column), (255, ROW)]), 0);
    assert_eq!(number(&[(1, &[1]), (2, column), (3, &[OK, 0, 5])]), 4);
    // More is to come: rows, another result, a definition, the client's proof.
    assert_eq!(number(&[(1, &[1]), (2, column), (3, END)]), 4);
    assert_eq!(number(&[(1, &[1]), (2, column), (3, END), (4, &[0xfe, 0, 0, 10, 0])]), 5);
    assert_eq!(number(&[(1, &[OK, 9, 0, 0, 0, 1, 0, 1, 0, 0, 0, 0]), (2, column)]), 3);
    assert_eq!(number(&[(1, b"\xfecaching_sha2_password\0")]), 3);
    assert!(Downstream::mysql(true).notice(&text()).is_none());
}

#[test]
fn behind_a_login_nothing_is_due() {
    for login in [&[(2, &[OK, 0, 0, 2, 0, 0, 0][..])][..], &[(4, b"\x01\x03"), (5, &[OK, 0, 0, 2, 0, 0, 0])]] {
        let mut stream = Downstream::mysql(true);
        stream.pass(&packets(login));
        stream.end_answer();
        assert!(stream.is_between_answers(), "{login:?}");
        assert_eq!(stream.last_words(&text()).unwrap()[3], 1);
    }
}

#[test]
fn a_report_of_progress_is_followed_by_the_number_behind_it() {
    const REPORT: &[u8] = b"\xff\xff\xff\x01\x01\x02\x10\x27\x00\x04copy";
    assert_eq!(number(&[(1, REPORT), (2, REPORT)]), 3);
    assert_eq!(number(&[(1, REPORT), (2, &[OK, 0, 0, 2, 0, 0, 0])]), 1);
    // More reports than there are numbers.
    let reports: Vec<(u8, &[u8])> = (1..=300_u16).map(|report| (report.to_le_bytes()[0], REPORT)).collect();
    assert_eq!(number(&reports), 45);
}

#[test]
fn rows_of_a_cursor_end_with_their_end_where_they_are_expected() {
    const ROW: &[u8] = &[OK, 0, 1, 0, 0, 0, 0];
    let mut stream = Downstream::mysql(true);
    stream.expect_rows();
    for (packet, ended) in [((1, ROW), false), ((2, ROW), false), ((3, &[0xfe, 0, 0, 0x82, 0][..]), true)] {
        stream.pass(&packets(&[packet]));
        assert_eq!(stream.is_between_answers(), ended, "{packet:?}");
    }
    // Only the next answer.
    stream.pass(&packets(&[(1, ROW)]));
    assert!(stream.is_between_answers());
}

#[test]
fn a_request_for_a_file_is_held_wherever_a_result_is_due_and_however_it_is_cut() {
    const REQUEST: &[u8] = b"\xfb/etc/passwd";
    const NULL_ROW: &[u8] = b"\xfb";
    const END: &[u8] = &[0xfe, 0, 0, 2, 0];
    let column: &[u8] = b"\x03def\0\0\0";
    let more: &[u8] = &[OK, 0, 0, 10, 0, 0, 0];
    for (before, number) in [
        (packets(&[]), 1),
        (packets(&[(1, more)]), 2),
        // A row that begins with NULL is none.
        (packets(&[(1, &[1]), (2, column), (3, END), (4, NULL_ROW), (5, &[0xfe, 0, 0, 10, 0])]), 6),
        (packets(&[(1, &[1]), (2, column), (3, END), (4, NULL_ROW), (5, END)]), 1),
    ] {
        let whole = [before.clone(), packets(&[(number, REQUEST)])].concat();
        for cut in 1..=whole.len() {
            let mut stream = Downstream::mysql(false).holding_file_requests();
            let (mut passed, mut held) = (Vec::new(), false);
            for piece in whole.chunks(cut) {
                let at = stream.pass_up_to_file_request(piece);
                passed.extend_from_slice(&piece[..at.unwrap_or(piece.len())]);
                held = at.is_some();
                if held {
                    break;
                }
            }
            assert!(held && before.starts_with(&passed[..before.len()]), "{before:?} in pieces of {cut}");
            // The client gets an error with the number that it expects.
            assert_eq!(stream.last_words(&text()).unwrap()[3], number, "{before:?} in pieces of {cut}");
        }
        let mut lets = Downstream::mysql(false);
        assert_eq!(lets.pass_up_to_file_request(&whole), None);
        let mut asked = Downstream::mysql(false).holding_file_requests();
        asked.pass_up_to_file_request(&whole);
        asked.pass_file_request(&packets(&[(number, REQUEST)]));
        assert!(!asked.is_between_answers());
        // The number behind those of the file's packets.
        asked.pass(&packets(&[(9, &[OK, 1, 0, 2, 0, 0, 0])]));
        assert!(asked.is_between_answers());
    }
}

#[test]
fn a_long_mysql_packet_is_not_interrupted_before_its_last_part() {
    let long = vec![b'x'; PAYLOAD_MAX];
    let mut stream = Downstream::mysql(true);
    stream.pass(&packets(&[(4, &long)]));
    assert!(!stream.is_between_messages());
    stream.pass(&packets(&[(5, b"")]));
    assert_eq!(stream.last_words(&text()).unwrap()[3], 6);
}

/// A stream, and where its messages end.
fn stream(mysql: bool, bodies: &[Vec<u8>]) -> (Vec<u8>, Vec<usize>) {
    let (mut out, mut ends) = (BytesMut::new(), vec![0]);
    for (number, body) in (1..).zip(bodies) {
        match mysql {
            true => packet::encode(number, body, &mut out),
            false => message::encode(b'D', body, &mut out),
        }
        ends.push(out.len());
    }
    (out.to_vec(), ends)
}

proptest! {
    #[test]
    fn any_chunking_finds_the_same_ends(
        mysql: bool,
        bodies in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..30), 0..20),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
    ) {
        let (bytes, ends) = stream(mysql, &bodies);
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
        cuts.extend([0, bytes.len()]);
        cuts.sort_unstable();
        let begin = if mysql { Downstream::mysql(true) } else { Downstream::postgres() };
        let (mut whole, mut pieces) = (begin.clone(), begin);
        for pair in cuts.windows(2) {
            pieces.pass(&bytes[pair[0]..pair[1]]);
            prop_assert_eq!(pieces.is_between_messages(), ends.contains(&pair[1]), "at {}", pair[1]);
        }
        whole.pass(&bytes);
        prop_assert_eq!(whole.last_words(&text()), pieces.last_words(&text()));
        // From anywhere, the next end is found.
        for pair in cuts.windows(2) {
            let mut stream = if mysql { Downstream::mysql(true) } else { Downstream::postgres() };
            stream.pass(&bytes[..pair[0]]);
            let found = pair[0] + stream.pass_message(&bytes[pair[0]..]);
            let next = ends.iter().find(|end| **end > pair[0]).copied().unwrap_or(bytes.len());
            prop_assert_eq!(found, next);
        }
    }
}
