//! What a client says: alone, together, and in ways that no client library does.

use proptest::prelude::*;

use super::server::{Agreed, Fault};
use super::sql::Sql;
use crate::mysql::packet::{self, PAYLOAD_MAX};

/// Which number of a statement a client names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pick {
    /// One that it was given.
    Given(u8),
    /// The one that it was given last.
    Newest,
    /// One that it may be given: this far from the next one.
    Guess(i8),
    /// MariaDB's "the last".
    Last,
    Nobodys,
}

/// Parameters of an execute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Values {
    Good,
    Missing,
    Bad,
}

/// A command of the client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Said {
    Query(Vec<Sql>),
    /// A query whose payload has so many bytes, and so more than one packet.
    Long(usize),
    Prepare(Sql),
    Execute(Pick, u8, Values),
    Bulk(Pick, Values),
    Fetch(Pick, u8),
    LongData(Pick, u8),
    ResetStatement(Pick),
    Close(Pick),
    ResetConnection,
    ChangeUser,
    InitDb,
    /// A command of this number, with so many bytes behind it.
    Other(u8, u8),
    Empty,
    Quit,
    /// With a number that begins no command.
    OutOfOrder(u8),
}

/// Numbers that a client knows or guesses.
pub(super) struct Numbers<'a> {
    pub(super) given: &'a [u32],
    pub(super) next: u32,
}

impl Numbers<'_> {
    fn pick(&self, pick: Pick) -> u32 {
        match pick {
            Pick::Given(n) => self.given.get(usize::from(n) % self.given.len().max(1)).copied().unwrap_or(1),
            Pick::Newest => self.given.last().copied().unwrap_or(1),
            Pick::Guess(far) => self.next.saturating_add_signed(i32::from(far)),
            Pick::Last => u32::MAX,
            Pick::Nobodys => 77_777,
        }
    }
}

/// The SQL of a command.
pub(super) fn text(said: &Said, number: usize) -> Option<String> {
    match said {
        Said::Query(sqls) => Some(sqls.iter().map(|sql| sql.text(number)).collect::<Vec<_>>().join(";")),
        Said::Prepare(sql) => Some(sql.text(number)),
        Said::Long(length) => Some(format!("select '{}'", "x".repeat(length - 10))),
        _ => None,
    }
}

/// The packet of a command, and the number of the statement in it.
pub(super) fn encode(said: &Said, number: usize, numbers: &Numbers<'_>) -> (Vec<u8>, Option<u32>) {
    let mut named = None;
    let mut with = |code: u8, pick: Pick, rest: &[u8]| {
        let number = numbers.pick(pick);
        named = Some(number);
        [&[code][..], &number.to_le_bytes(), rest].concat()
    };
    let values = |values: Values| match values {
        Values::Good => [&[0, 1][..], &[3, 0].repeat(4), &[1, 0, 0, 0].repeat(4)].concat(),
        Values::Missing => Vec::new(),
        Values::Bad => vec![0, 7, 3, 0],
    };
    let mut sequence = 0;
    let payload = match said {
        Said::Query(_) | Said::Long(_) => [b"\x03", text(said, number).unwrap().as_bytes()].concat(),
        Said::Prepare(_) => [b"\x16", text(said, number).unwrap().as_bytes()].concat(),
        Said::Execute(pick, flags, given) => with(0x17, *pick, &[&[*flags, 1, 0, 0, 0][..], &values(*given)].concat()),
        Said::Bulk(pick, given) => with(0xfa, *pick, &[&[128, 0][..], &values(*given)].concat()),
        Said::Fetch(pick, rows) => with(0x1c, *pick, &[*rows, 0, 0, 0]),
        Said::LongData(pick, parameter) => with(0x18, *pick, &[*parameter, 0, b'x']),
        Said::ResetStatement(pick) => with(0x1a, *pick, &[]),
        Said::Close(pick) => with(0x19, *pick, &[]),
        Said::ResetConnection => vec![0x1f],
        Said::ChangeUser => b"\x11anyone\0\0scratch\0".to_vec(),
        Said::InitDb => format!("\x02db{number}").into_bytes(),
        Said::Other(code, length) => [&[*code][..], &vec![0; usize::from(*length)]].concat(),
        Said::Empty => Vec::new(),
        Said::Quit => vec![1],
        Said::OutOfOrder(number) => {
            sequence = *number;
            b"\x03select 'out of order'".to_vec()
        }
    };
    let mut out = Vec::new();
    let (mut rest, mut sequence) = (payload.as_slice(), sequence);
    while let Some((first, behind)) = rest.split_at_checked(PAYLOAD_MAX) {
        packet::encode(sequence, first, &mut out);
        (rest, sequence) = (behind, sequence + 1);
    }
    packet::encode(sequence, rest, &mut out);
    (out, named)
}

/// Whether the server answers it.
pub(super) fn is_answered(said: &Said, agreed: Agreed) -> bool {
    match said {
        Said::LongData(..) | Said::Close(_) | Said::Quit => false,
        Said::Other(0x18, length) => *length < 6 && !agreed.is_mariadb,
        Said::Other(0x19, length) => *length < 4 && !agreed.is_mariadb,
        _ => true,
    }
}

/// What happens next between a client, the session and the server.
#[derive(Debug, Clone)]
pub(super) enum Step {
    /// The client says something, and the server fails at it.
    Say(Said, Fault),
    /// A packet of the file that it was asked for, if it was; `None` is the last one.
    File(Option<&'static [u8]>),
    /// So many bytes of what it has said come to the session.
    Write(u16),
    /// The server handles so many packets.
    Handle(u8),
    /// So many of its bytes come to the session.
    Deliver(u16),
    /// They come up to the end of the message under way.
    DeliverMessage(u16),
    /// The server goes away with a last error of this number.
    Die(u8),
    /// Everything is written, handled and delivered.
    Settle,
}

fn picks() -> impl Strategy<Value = Pick> {
    prop_oneof![
        6 => any::<u8>().prop_map(Pick::Given),
        8 => Just(Pick::Newest),
        4 => (-2..3_i8).prop_map(Pick::Guess),
        4 => Just(Pick::Last),
        1 => Just(Pick::Nobodys),
    ]
}

fn sql() -> impl Strategy<Value = Sql> {
    prop_oneof![
        8 => (1..4_usize, prop_oneof![30 => 0..4_usize, 1 => 248..258_usize]).prop_map(|(columns, rows)| Sql::Select { columns, rows }),
        3 => (1..4_usize).prop_map(Sql::Parameters),
        4 => Just(Sql::Insert),
        1 => Just(Sql::Fails),
        1 => Just(Sql::FailsInRows),
        2 => Just(Sql::NoSyntax),
        1 => Just(Sql::Empty),
        2 => Just(Sql::Call),
        2 => Just(Sql::CallOut),
        1 => Just(Sql::Pretends),
        1 => (0..2_u8).prop_map(Sql::Prepare),
        1 => (0..2_u8).prop_map(Sql::Deallocate),
        1 => (0..2_u8).prop_map(Sql::Execute),
        1 => Just(Sql::Load),
    ]
}

fn values() -> impl Strategy<Value = Values> {
    prop_oneof![12 => Just(Values::Good), 1 => Just(Values::Missing), 1 => Just(Values::Bad)]
}

fn command() -> impl Strategy<Value = Said> {
    // Those that look, one that stops, and some that nobody knows.
    let others = prop::sample::select(vec![
        0x00, 0x04, 0x05, 0x09, 0x0a, 0x0b, 0x0c, 0x0d, 0x0e, 0x0f, 0x10, 0x13, 0x14, 0x1b, 0x1d, 0x50, 0xf0, 0xfb,
        0xfe, 0xff,
    ]);
    let short = prop::sample::select(vec![(0x17, 5), (0x18, 5), (0x19, 3), (0x1a, 0), (0x1c, 7), (0x1c, 2), (0xfa, 2)]);
    prop_oneof![
        60 => prop_oneof![
            4 => sql().prop_map(|sql| vec![sql]),
            1 => prop::collection::vec(sql(), 2..5),
        ].prop_map(Said::Query),
        80 => sql().prop_map(Said::Prepare),
        100 => (picks(), prop_oneof![3 => Just(0), 1 => Just(1)], values())
            .prop_map(|(pick, flags, values)| Said::Execute(pick, flags, values)),
        20 => (picks(), values()).prop_map(|(pick, values)| Said::Bulk(pick, values)),
        30 => (picks(), 0..4_u8).prop_map(|(pick, rows)| Said::Fetch(pick, rows)),
        20 => (picks(), 0..2_u8).prop_map(|(pick, parameter)| Said::LongData(pick, parameter)),
        15 => picks().prop_map(Said::ResetStatement),
        30 => picks().prop_map(Said::Close),
        10 => Just(Said::ResetConnection),
        8 => Just(Said::ChangeUser),
        10 => Just(Said::InitDb),
        40 => (others, 0..9_u8).prop_map(|(code, length)| Said::Other(code, length)),
        2 => short.prop_map(|(code, length)| Said::Other(code, length)),
        30 => Just(Said::Empty),
        1 => Just(Said::Quit),
        1 => (1..4_u8).prop_map(Said::OutOfOrder),
        1 => Just(Said::Other(0x12, 10)),
    ]
}

/// Commands that belong together, and hostile ones that do not.
fn commands() -> impl Strategy<Value = Vec<Said>> {
    let execute = |pick| Said::Execute(pick, 0, Values::Good);
    let whole = (sql(), picks(), 0..2_u8, 0..4_u8).prop_map(move |(sql, pick, flags, rows)| {
        let mut said = vec![Said::Prepare(sql), Said::Execute(pick, flags, Values::Good)];
        if flags == 1 {
            said.push(Said::Fetch(pick, rows));
        }
        said
    });
    let tricks = (0..6_u8, sql()).prop_map(move |(how, sql)| {
        let (evil, good) = (Said::Prepare(Sql::Insert), Said::Prepare(sql));
        match how {
            0 => vec![Said::Empty, evil, good, execute(Pick::Guess(-1)), execute(Pick::Guess(0))],
            1 => vec![evil, Said::Prepare(Sql::NoSyntax), execute(Pick::Last)],
            2 => vec![evil, good, Said::Close(Pick::Last), execute(Pick::Last), execute(Pick::Newest)],
            3 => vec![Said::Query(vec![Sql::Prepare(0)]), evil, execute(Pick::Guess(0)), execute(Pick::Guess(1))],
            4 => {
                vec![good, Said::Other(0x09, 0), evil, execute(Pick::Last), Said::ResetConnection, execute(Pick::Last)]
            }
            _ => vec![Said::Fetch(Pick::Newest, 3), evil, Said::Fetch(Pick::Last, 0), good, execute(Pick::Last)],
        }
    });
    prop_oneof![
        4 => tricks,
        10 => command().prop_map(|said| vec![said]),
        6 => whole,
    ]
}

fn faults() -> impl Strategy<Value = Fault> {
    prop_oneof![
        800 => Just(Fault::No),
        40 => Just(Fault::First),
        40 => Just(Fault::Later),
        2 => Just(Fault::Dies),
        1 => Just(Fault::DiesSilently),
        1 => Just(Fault::AsksForFile),
    ]
}

pub(super) fn agreed() -> impl Strategy<Value = Agreed> {
    any::<[bool; 6]>().prop_map(|[is_mariadb, deprecates_eof, optional_metadata, files, progress, bulk]| Agreed {
        is_mariadb,
        deprecates_eof,
        optional_metadata,
        files,
        progress,
        bulk,
    })
}

pub(super) fn steps(longest: usize) -> impl Strategy<Value = Vec<Step>> {
    let say = (commands(), prop::collection::vec((faults(), 0..40_u16, 0..6_u8), 8)).prop_map(|(said, how)| {
        let each = |(said, (fault, write, handle)): (Said, (Fault, u16, u8))| {
            [Step::Say(said, fault), Step::Write(write), Step::Handle(handle / 4)]
        };
        said.into_iter().zip(how).flat_map(each).collect()
    });
    let one = |step| Just(vec![step]);
    let file = prop_oneof![
        2 => Just(vec![Step::File(Some(b"1\n")), Step::File(None)]),
        1 => Just(vec![Step::File(Some(b"bad")), Step::Settle]),
        1 => Just(vec![Step::File(None)]),
    ];
    let step = prop_oneof![
        24 => say,
        6 => (1..200_u16).prop_map(|count| vec![Step::Write(count)]),
        6 => (1..8_u8).prop_map(|count| vec![Step::Handle(count)]),
        8 => (1..60_u16).prop_map(|count| vec![Step::Deliver(count)]),
        2 => (1..60_u16).prop_map(|count| vec![Step::DeliverMessage(count)]),
        3 => file,
        14 => one(Step::Settle),
    ];
    let end = prop_oneof![4 => Just(None), 1 => (0..2_u8).prop_map(|number| Some(Step::Die(number)))];
    (prop::collection::vec(step, 1..longest), end)
        .prop_map(|(steps, end)| steps.concat().into_iter().chain(end).collect())
}
