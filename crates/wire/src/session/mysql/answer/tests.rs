use super::*;

const FINE: &[u8] = &[OK, 0, 0, 2, 0, 0, 0];
const END: &[u8] = &[EOF, 0, 0, 2, 0];
const END_AS_OK: &[u8] = &[EOF, 0, 0, 2, 0, 0, 0];
const MORE: &[u8] = &[EOF, 0, 0, 10, 0];
const MORE_AS_OK: &[u8] = &[EOF, 0, 0, 10, 0, 0, 0];
const COLUMN: &[u8] = b"\x03def\x00\x00\x00";
const ROW: &[u8] = b"\x011";
const BINARY_ROW: &[u8] = &[0, 0, 1, 0, 0, 0, 0];
const NO: &[u8] = b"\xff\x15\x04#28000no";
const REPORT: &[u8] = b"\xff\xff\xff\x01\x01\x02\x10\x27\x00\x0acopy to tmp";

const OLD: Rules = Rules { deprecates_eof: false, metadata: Metadata::Always, progress: false };
const NEW: Rules = Rules { deprecates_eof: true, ..OLD };

/// Where an answer is behind each of these packets, up to the first that does not fit.
fn places(kind: Kind, payloads: &[&[u8]], rules: Rules) -> Vec<Option<At>> {
    let mut at = Some(At::Begin);
    let follow = |payload: &&[u8]| {
        let packet = Packet { start: payload.get(..START).unwrap_or(payload), length: payload.len() };
        at = at.and_then(|at| at.after(kind, &packet, rules));
        if at == Some(At::File) {
            at = Some(At::Result);
        }
        at
    };
    payloads.iter().map(follow).collect()
}

/// These packets are one whole answer, which ends with the last of them and not before.
fn assert_whole(kind: Kind, payloads: &[&[u8]], rules: Rules) {
    let places = places(kind, payloads, rules);
    let (last, before) = places.split_last().unwrap();
    let goes_on = |at: &Option<At>| at.is_some_and(|at| at != At::Ended);
    assert!(*last == Some(At::Ended) && before.iter().all(goes_on), "{kind:?} {payloads:?} {places:?}");
}

fn prepared(columns: u8, parameters: u8) -> [u8; 12] {
    [OK, 7, 0, 0, 0, columns, 0, parameters, 0, 0, 0, 0]
}

#[test]
fn answers_end_with_their_last_packet() {
    for (kind, whole) in [
        (Kind::Fine, &[FINE][..]),
        (Kind::Fine, &[END]),
        (Kind::Fine, &[NO]),
        (Kind::Text, &[b"Uptime: 7  Threads: 1"]),
        (Kind::Results, &[FINE]),
        (Kind::Results, &[&[1], COLUMN, END, ROW, END]),
        (Kind::Results, &[&[2], COLUMN, COLUMN, END, END]),
        (Kind::Results, &[&[1], COLUMN, END, ROW, NO]),
        (Kind::Results, &[&[1], COLUMN, END, BINARY_ROW, FINE, END]),
        // A procedure, or several statements.
        (Kind::Results, &[&[1], COLUMN, END, ROW, MORE, FINE]),
        (Kind::Results, &[&[OK, 0, 0, 10, 0, 0, 0], &[1], COLUMN, END, ROW, END]),
        // A cursor; one that could not be opened; one that MySQL 9 has taken for the other kind.
        (Kind::Results, &[&[1], COLUMN, &[EOF, 0, 0, 0x42, 0]]),
        (Kind::Results, &[&[1], COLUMN, NO]),
        (Kind::Results, &[&[1], COLUMN, &[OK, 0, 0, 0x22, 0, 0, 0]]),
        // Parameters that come out of a procedure, whose own end does not say that more follows.
        (Kind::Results, &[&[1], COLUMN, &[EOF, 0, 0, 0x0a, 0x10], BINARY_ROW, END, FINE]),
        // A file, and what became of it.
        (Kind::Results, &[b"\xfb/tmp/rows.csv", FINE]),
        (Kind::Prepared, &[&prepared(0, 0)]),
        (Kind::Prepared, &[&prepared(2, 0), COLUMN, COLUMN, END]),
        (Kind::Prepared, &[&prepared(1, 2), COLUMN, COLUMN, END, COLUMN, END]),
        (Kind::Prepared, &[NO]),
        // The fields of a table; what is fetched of a cursor.
        (Kind::Rows, &[b"\x03def\x00\x01\x00a\x00\x00\x00", b"\x03def\x00\x01\x00a\x00\x00\x00", END]),
        (Kind::Rows, &[BINARY_ROW, BINARY_ROW, &[EOF, 0, 0, 0x8a, 0]]),
        (Kind::Rows, &[NO]),
        // A binary log.
        (Kind::Events, &[BINARY_ROW, BINARY_ROW, END]),
        (Kind::Events, &[BINARY_ROW, b"\xff\xd4\x04#HY000binary log is over"]),
    ] {
        assert_whole(kind, whole, OLD);
    }
    for (kind, whole) in [
        (Kind::Results, &[FINE][..]),
        (Kind::Results, &[&[1], COLUMN, ROW, END_AS_OK]),
        (Kind::Results, &[&[1], COLUMN, END_AS_OK]),
        (Kind::Results, &[&[1], COLUMN, ROW, MORE_AS_OK, FINE]),
        (Kind::Results, &[&[1], COLUMN, &[EOF, 0, 0, 0x42, 0, 0, 0]]),
        (Kind::Prepared, &[&prepared(2, 0), COLUMN, COLUMN]),
        (Kind::Prepared, &[&prepared(1, 2), COLUMN, COLUMN, COLUMN]),
        (Kind::Rows, &[BINARY_ROW, END_AS_OK]),
    ] {
        assert_whole(kind, whole, NEW);
    }
}

#[test]
fn definitions_may_be_left_out_where_that_is_agreed() {
    let [in_front, behind] = [Metadata::InFront, Metadata::Behind].map(|metadata| Rules { metadata, ..OLD });
    assert_whole(Kind::Results, &[&[0, 1], END, ROW, END], in_front);
    assert_whole(Kind::Results, &[&[1, 2], COLUMN, COLUMN, END, ROW, END], in_front);
    assert_whole(Kind::Results, &[FINE], in_front);
    assert_whole(Kind::Results, &[&[0, 1], ROW, ROW, END_AS_OK], Rules { deprecates_eof: true, ..in_front });
    assert_whole(Kind::Prepared, &[&[OK, 7, 0, 0, 0, 1, 0, 1, 0, 0, 0, 0, 0]], in_front);
    assert_whole(Kind::Results, &[&[1, 0], END, ROW, END], behind);
    assert_whole(Kind::Results, &[&[2, 1], COLUMN, COLUMN, END, ROW, END], behind);
    // Where nobody has agreed to it, two numbers are no number of columns.
    assert_eq!(places(Kind::Results, &[&[1, 0]], OLD), [None]);
}

#[test]
fn reports_of_progress_end_nothing_where_they_are_agreed_and_are_errors_elsewhere() {
    let rules = Rules { progress: true, ..OLD };
    assert_whole(Kind::Results, &[REPORT, REPORT, FINE], rules);
    assert_whole(Kind::Results, &[REPORT, NO], rules);
    assert_whole(Kind::Results, &[REPORT, &[1], COLUMN, REPORT, END, ROW, REPORT, END], rules);
    assert_eq!(places(Kind::Results, &[REPORT], OLD), [Some(At::Ended)]);
    assert_whole(Kind::Results, &[b"\xff\xff\xff#HY000of somebody's own"], rules);
}

#[test]
fn a_packet_that_no_such_answer_has_does_not_fit() {
    for (kind, payloads) in [
        (Kind::Fine, &[&b"\x01"[..]][..]),
        (Kind::Fine, &[b""]),
        (Kind::Results, &[b""]),
        (Kind::Results, &[b"\x01\x02\x03"]),
        (Kind::Prepared, &[FINE]),
        (Kind::Events, &[ROW]),
        (Kind::Results, &[&[1], COLUMN, ROW]),
    ] {
        assert_eq!(places(kind, payloads, OLD).last(), Some(&None), "{kind:?} {payloads:?}");
    }
}

#[test]
fn a_database_may_ask_for_a_file_instead_of_any_result() {
    for kind in [Kind::Fine, Kind::Prepared, Kind::Results] {
        let packet = Packet { start: b"\xfb/etc/passwd", length: 12 };
        assert_eq!(At::Begin.after(kind, &packet, OLD), Some(At::File));
    }
    // A row may begin with NULL.
    let rows = places(Kind::Results, &[&[1], COLUMN, END, b"\xfb", MORE, b"\xfb/etc/passwd", FINE], OLD);
    assert_eq!(rows[3], Some(At::Rows { more: false }));
    assert_eq!(rows.last(), Some(&Some(At::Ended)));
}
