//! Conversations played through by hand, and cut in every way.

use proptest::prelude::*;

use super::super::packet;
use super::*;
use crate::wire::statements::KEPT;

const LIMITS: Limits = Limits { text: 64, redact: false };

fn packet(sequence: u8, parts: &[&[u8]]) -> Vec<u8> {
    let mut out = Vec::new();
    packet::encode(sequence, &parts.concat(), &mut out);
    out
}

fn statement(kind: Kind, name: Option<&str>, sql: Option<&str>) -> Statement {
    Statement { kind, name: name.map(str::to_owned), sql: sql.map(str::to_owned), truncated: false }
}

/// Which side sends what.
enum Side {
    Up(Vec<u8>),
    Down(Vec<u8>),
}
use Side::{Down, Up};

fn query(sql: &str) -> Side {
    Up(packet(0, &[&[QUERY], sql.as_bytes()]))
}

fn prepare(sql: &str) -> Vec<u8> {
    packet(0, &[&[PREPARE], sql.as_bytes()])
}

fn execute(number: u32) -> Vec<u8> {
    packet(0, &[&[EXECUTE], &number.to_le_bytes(), &[0, 1, 0, 0, 0]])
}

/// COM_STMT_PREPARE_OK, one parameter, no columns, and what follows it.
fn prepared(number: u32) -> Vec<u8> {
    let head = [&[0][..], &number.to_le_bytes(), &[0, 0, 1, 0, 0, 0, 0]].concat();
    [packet(1, &[&head]), packet(2, &[b"\x03def"]), packet(3, &[b"\xfe\0\0\0\0"])].concat()
}

/// An answer of so many packets, each of which looks like the answer to a prepare.
fn answer(packets: u32) -> Vec<u8> {
    (1..=packets).flat_map(|n| packet(n.to_le_bytes()[0], &[&[0, 99, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]])).collect()
}

const DELETE: &str = "delete from orders where id = ?";

fn conversation() -> (Vec<Side>, Vec<Statement>) {
    let sides = vec![
        query("select 1"),
        // Rows run through the numbers more than once.
        Down(answer(600)),
        Up(prepare(DELETE)),
        Down(prepared(7)),
        Up(packet(0, &[&[SEND_LONG_DATA], &7_u32.to_le_bytes(), b"\0\0\x03not SQL"])),
        Up(execute(7)),
        Down(answer(1)),
        Up(prepare("syntax error")),
        Down(packet(1, &[b"\xff\x28\x04#42000no"])),
        Up(execute(7)),
        Down(answer(256)),
        // The answer before has ended with number 0, and this one begins with 1.
        Up(prepare("select 2")),
        Down(prepared(8)),
        Up(execute(8)),
        Down(answer(2)),
        Up(packet(0, &[&[CLOSE], &7_u32.to_le_bytes()])),
        Up(execute(7)),
        Down(packet(1, &[b"\xff\xdb\x04#HY000unknown"])),
        Up(packet(0, &[b"\x0e"])),
        Down(answer(1)),
        Up(packet(0, &[b"\x02events"])),
        Down(answer(1)),
        Up(packet(0, &[&[PROCESS_KILL, 42, 0, 0, 0]])),
        Down(answer(1)),
        Up(packet(0, &[&[0x2a]])),
        Down(packet(1, &[b"\xff\x17\x04#08S01unknown command"])),
        query("select '片山'"),
        Down(answer(3)),
        Up(packet(0, &[&[RESET_CONNECTION]])),
        Down(answer(1)),
        Up(execute(8)),
        Down(packet(1, &[b"\xff\xdb\x04#HY000unknown"])),
        Up(packet(0, &[&[QUIT]])),
    ];
    let found = vec![
        statement(Kind::Query, None, Some("select 1")),
        statement(Kind::Prepare, None, Some(DELETE)),
        statement(Kind::Execute, Some("7"), Some(DELETE)),
        statement(Kind::Prepare, None, Some("syntax error")),
        statement(Kind::Execute, Some("7"), Some(DELETE)),
        statement(Kind::Prepare, None, Some("select 2")),
        statement(Kind::Execute, Some("8"), Some("select 2")),
        statement(Kind::Execute, Some("7"), None),
        statement(Kind::Command, Some("init_db"), Some("events")),
        statement(Kind::Command, Some("process_kill"), Some("42")),
        statement(Kind::Command, Some("0x2a"), None),
        statement(Kind::Query, None, Some("select '片山'")),
        statement(Kind::Command, Some("reset_connection"), None),
        statement(Kind::Execute, Some("8"), None),
    ];
    (sides, found)
}

/// With both directions cut into chunks of these sizes.
fn observed(limits: Limits, sides: &[Side], chunks: &[usize]) -> Vec<Statement> {
    let (mut observer, mut found, mut chunks) = (Observer::new(limits), Vec::new(), chunks.iter().cycle());
    for side in sides {
        let (Up(bytes) | Down(bytes)) = side;
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            let (now, later) = rest.split_at((*chunks.next().unwrap()).min(rest.len()));
            match side {
                Up(_) => observer.up(now, &mut found),
                Down(_) => observer.down(now),
            }
            rest = later;
        }
    }
    found
}

proptest! {
    #[test]
    fn any_chunking_finds_the_same(chunks in prop::collection::vec(1_usize..300, 1..20)) {
        let (sides, expected) = conversation();
        prop_assert_eq!(observed(LIMITS, &sides, &chunks), expected);
    }

    #[test]
    fn no_bytes_panic_or_fill_the_memory(
        up in prop::collection::vec(any::<u8>(), 0..2000),
        down in prop::collection::vec(any::<u8>(), 0..2000),
    ) {
        for statement in observed(LIMITS, &[Up(up.clone()), Down(down), Up(up)], &[7]) {
            prop_assert!(statement.sql.is_none_or(|sql| sql.len() <= 3 * LIMITS.text));
        }
    }
}

#[test]
fn a_text_over_several_packets_is_cut_and_what_follows_is_still_found() {
    let full = vec![b'x'; PAYLOAD_MAX - 1];
    let stream = [packet(0, &[b"\x03", &full]), packet(1, &[b"\x03xx"]), packet(0, &[b"\x03select 2"])].concat();
    let found = observed(LIMITS, &[Up(stream)], &[65_536]);
    assert_eq!(found[0], Statement { truncated: true, ..statement(Kind::Query, None, Some(&"x".repeat(64))) });
    assert_eq!(found[1..], [statement(Kind::Query, None, Some("select 2"))]);
    // As long as is kept, and one byte more.
    for (length, truncated) in [(64, false), (65, true)] {
        let found = observed(LIMITS, &[query(&"x".repeat(length))], &[1000]);
        assert_eq!(found, [Statement { truncated, ..statement(Kind::Query, None, Some(&"x".repeat(64))) }]);
    }
}

#[test]
fn a_packet_with_a_number_that_begins_no_command_is_reported_all_the_same() {
    let found = observed(LIMITS, &[Up(packet(5, &[b"\x03select 1"]))], &[3]);
    assert_eq!(found, [statement(Kind::Query, None, Some("select 1"))]);
}

#[test]
fn clients_that_do_not_wait_are_followed_in_order() {
    let executed = |sides: &[Side]| {
        let found = observed(LIMITS, sides, &[5]);
        let executed = found.into_iter().filter(|statement| statement.kind == Kind::Execute);
        executed.map(|statement| statement.sql).collect::<Vec<_>>()
    };
    // MariaDB: the number of the statement that is being prepared is not known yet.
    let at_once = [prepare("select ?"), execute(LAST)].concat();
    assert_eq!(executed(&[Up(at_once)]), [Some("select ?".to_owned())]);
    // A query before the prepare, whose answer looks like that of a prepare, and its rows.
    let both = [packet(0, &[b"\x03select 1"]), prepare(DELETE)].concat();
    let answers = [answer(3), prepared(7)].concat();
    assert_eq!(executed(&[Up(both), Down(answers), Up(execute(7)), Up(execute(99))]), [Some(DELETE.to_owned()), None]);
    // Two answers of which nobody can say where one ends: better no text than another one's.
    let both = [packet(0, &[b"\x03select 1"]), prepare(DELETE)].concat();
    let answers = [answer(257), prepared(7)].concat();
    assert_eq!(executed(&[Up(both), Down(answers), Up(execute(7)), Up(execute(99))]), [None, None]);
    // The same where no packet is expected.
    let odd = [Up(prepare(DELETE)), Down(prepared(7)), Down(packet(9, &[b"\xff"])), Up(execute(7))];
    assert_eq!(executed(&odd), [None]);
}

#[test]
fn much_that_waits_costs_bounded_memory() {
    let (mut observer, mut found) = (Observer::new(LIMITS), Vec::new());
    for n in 0..10_000_u32 {
        observer.up(&prepare("select 1"), &mut found);
        observer.down(&prepared(n));
    }
    assert_eq!((found.len(), observer.statements.len()), (10_000, KEPT));
    for _ in 0..100_000 {
        observer.up(&packet(0, &[b"\x0e"]), &mut found);
    }
    assert!(observer.answers.waiting.len() <= WAITING && observer.answers.lost);
}

#[test]
fn a_session_that_starts_anew_knows_no_statement_and_says_so() {
    let (mut observer, mut found) = (Observer::new(LIMITS), Vec::new());
    observer.up(&prepare(DELETE), &mut found);
    observer.down(&prepared(7));
    observer.answered(&packet(0, &[&[CHANGE_USER], b"root\0"]), &mut found);
    observer.up(&execute(7), &mut found);
    assert_eq!(
        found[1..],
        [statement(Kind::Command, Some("change_user"), None), statement(Kind::Execute, Some("7"), None)]
    );
}

#[test]
fn literals_become_question_marks() {
    let sides = [
        query("select 'S3CRET', \"S3CRET\", 17"),
        Down(answer(3)),
        Up(prepare("select 'S3CRET', ?")),
        Down(prepared(1)),
        Up(execute(1)),
    ];
    let found = observed(Limits { redact: true, ..LIMITS }, &sides, &[9]);
    assert_eq!(
        found,
        [
            statement(Kind::Query, None, Some("select ?, ?, ?")),
            statement(Kind::Prepare, None, Some("select ?, ?")),
            statement(Kind::Execute, Some("1"), Some("select ?, ?")),
        ]
    );
}

#[test]
fn a_file_is_no_statement_and_an_empty_command_has_an_answer() {
    let (mut observer, mut found) = (Observer::new(LIMITS), Vec::new());
    let load = "load data local infile 'rows.csv' into table t";
    observer.up(&packet(0, &[&[QUERY], load.as_bytes()]), &mut found);
    observer.down(&packet(1, &[b"\xfbrows.csv"]));
    observer.file_begins();
    observer.up(&[packet(2, &[b"\x03delete from t"]), packet(3, &[])].concat(), &mut found);
    observer.down(&packet(4, &[&[0, 1, 0, 2, 0, 0, 0]]));
    // The empty command, a prepared statement, and their answers.
    observer.up(&[packet(0, &[]), prepare(DELETE)].concat(), &mut found);
    observer.down(&[packet(1, &[b"\xff\x17\x04#08S01Unknown command"]), prepared(7)].concat());
    observer.up(&execute(7), &mut found);
    let expected = [
        statement(Kind::Query, None, Some(load)),
        statement(Kind::Prepare, None, Some(DELETE)),
        statement(Kind::Execute, Some("7"), Some(DELETE)),
    ];
    assert_eq!(found, expected);
}
