mod model;

use std::collections::{HashMap, VecDeque};

use bytes::BytesMut;
use proptest::prelude::*;

use super::*;
use crate::memory::Memory;
use crate::pg::message;
use crate::session::text::{Kind, Statement};
use model::{Came, Said, Server, Sql};

fn limits() -> Limits {
    Limits::new(4096, None, &Memory::relay())
}

/// What happens next between a client, the session and the server.
#[derive(Debug, Clone)]
enum Step {
    /// The client says something; whether the server fails at it, and where the bytes are cut.
    Say(Said, bool, u8),
    /// The server handles so many messages.
    Handle(u8),
    /// So many of its bytes come to the session, and so many of the relay's reads.
    Deliver(u16),
    /// A notice of the server.
    Notice,
    /// A COPY fails by itself.
    FailCopy,
    /// Everything is handled and delivered.
    Settle,
}

fn names() -> impl Strategy<Value = u8> {
    prop_oneof![30 => 0..3_u8, 1 => Just(model::LONG), 1 => Just(model::LONGER), 1 => Just(model::CUT)]
}

fn sql() -> impl Strategy<Value = Sql> {
    prop_oneof![
        20 => Just(Sql::Select),
        1 => Just(Sql::Fails),
        1 => Just(Sql::NoSyntax),
        1 => Just(Sql::Empty),
        3 => Just(Sql::Begin),
        3 => Just(Sql::Commit),
        2 => Just(Sql::Rollback),
        1 => Just(Sql::Savepoint),
        2 => Just(Sql::RollbackTo),
        2 => (1..3_u8).prop_map(Sql::Prepare),
        2 => (1..3_u8).prop_map(Sql::Deallocate),
        1 => Just(Sql::DeallocateAll),
        1 => Just(Sql::DiscardAll),
        2 => (1..3_u8).prop_map(Sql::Execute),
        2 => (1..3_u8).prop_map(Sql::Declare),
        1 => (1..3_u8).prop_map(Sql::Close),
        2 => Just(Sql::CopyIn),
        1 => Just(Sql::CopyOut),
    ]
}

fn message() -> impl Strategy<Value = Said> {
    prop_oneof![
        8 => (names(), sql()).prop_map(|(name, sql)| Said::Parse(name, sql)),
        10 => (names(), names()).prop_map(|(portal, statement)| Said::Bind { portal, statement }),
        1 => names().prop_map(Said::DescribeStatement),
        1 => names().prop_map(Said::DescribePortal),
        12 => (names(), 0..2_u8).prop_map(|(portal, rows)| Said::Execute { portal, rows }),
        2 => names().prop_map(Said::CloseStatement),
        1 => names().prop_map(Said::ClosePortal),
        8 => Just(Said::Sync),
        1 => Just(Said::Flush),
        4 => prop::collection::vec(sql(), 1..4).prop_map(Said::Query),
        1 => Just(Said::Function),
        2 => Just(Said::CopyData),
        2 => Just(Said::CopyDone),
        1 => Just(Said::CopyFail),
    ]
}

/// Messages that belong together, and hostile ones that do not.
fn messages() -> impl Strategy<Value = Vec<Said>> {
    let extended = (names(), names(), sql(), 0..2_u8, 0..16_u8).prop_map(|(portal, statement, sql, rows, parts)| {
        let mut said = Vec::new();
        if parts & 1 == 0 {
            said.push(Said::Parse(statement, sql));
        }
        said.push(Said::Bind { portal, statement });
        if parts & 2 == 0 {
            said.push(Said::DescribePortal(portal));
        }
        said.push(Said::Execute { portal, rows });
        if parts & 4 == 0 {
            said.push(Said::Sync);
        }
        if parts & 8 == 0 && portal != 0 {
            said.extend([Said::ClosePortal(portal), Said::Sync]);
        }
        said
    });
    let copy = (any::<bool>(), any::<bool>()).prop_map(|(extended, fails)| {
        let copy = match extended {
            true => vec![
                Said::Parse(0, Sql::CopyIn),
                Said::Bind { portal: 0, statement: 0 },
                Said::Execute { portal: 0, rows: 0 },
                Said::Sync,
            ],
            false => vec![Said::Query(vec![Sql::CopyIn, Sql::Select])],
        };
        let end = if fails { Said::CopyFail } else { Said::CopyDone };
        copy.into_iter().chain([Said::CopyData, end]).chain(extended.then_some(Said::Sync)).collect()
    });
    let tricks = (1..3_u8, names(), 0..4_u8).prop_map(|(name, other, how)| {
        let run =
            |sql| [Said::Parse(0, sql), Said::Bind { portal: 0, statement: 0 }, Said::Execute { portal: 0, rows: 0 }];
        let ends = |ends: Vec<Said>| ends.into_iter().chain([Said::Sync]).collect();
        match how {
            0 => vec![Said::Query(vec![Sql::Deallocate(name), Sql::Prepare(name)])],
            1 => ends([run(Sql::Deallocate(name)), run(Sql::Prepare(name))].concat()),
            2 => vec![Said::Query(vec![Sql::Begin]), Said::Query(vec![Sql::Close(name), Sql::Declare(name)])],
            _ => {
                let (portal, statement) = (0, other);
                let tricks = [Said::Parse(statement, Sql::Deallocate(name)), Said::Bind { portal, statement }];
                ends(
                    tricks
                        .into_iter()
                        .chain([Said::Execute { portal, rows: 0 }])
                        .chain(run(Sql::Prepare(name)))
                        .collect(),
                )
            }
        }
    });
    prop_oneof![
        3 => tricks,
        6 => message().prop_map(|said| vec![said]),
        10 => extended,
        1 => copy,
    ]
}

fn steps(longest: usize) -> impl Strategy<Value = Vec<Step>> {
    let fails = prop_oneof![19 => Just(false), 1 => Just(true)];
    let how = prop::collection::vec((fails, any::<u8>(), 0..6_u8), 8);
    let say = (messages(), how).prop_map(|(said, how)| {
        let said = said.into_iter().zip(how);
        said.flat_map(|(said, (fails, cut, handles))| [Step::Say(said, fails, cut), Step::Handle(handles / 4)])
            .collect()
    });
    let one = |step| Just(vec![step]);
    let step = prop_oneof![
        12 => say,
        4 => (1..8_u8).prop_map(|count| vec![Step::Handle(count)]),
        4 => (1..60_u16).prop_map(|count| vec![Step::Deliver(count)]),
        1 => one(Step::Notice),
        1 => one(Step::FailCopy),
        4 => one(Step::Settle),
    ];
    prop::collection::vec(step, 1..longest).prop_map(|steps| steps.concat())
}

/// The record of a message.
#[derive(Debug, Clone)]
struct Record {
    statement: Statement,
    not_run: bool,
}

/// What was said, and what came of it on both sides.
struct Play {
    session: Session,
    server: Server,
    /// Forwarded and not handled: number of the message, and whether the server fails at it.
    way: VecDeque<(usize, Said, bool)>,
    back: VecDeque<u8>,
    came: Vec<Came>,
    said: Vec<Said>,
    records: HashMap<usize, Record>,
    /// Texts that were told because they may run without being known.
    prepared: Vec<String>,
    by_number: HashMap<u64, usize>,
    ended: Option<OutOfProtocol>,
}

impl Play {
    fn new() -> Self {
        Self {
            session: Session::new(Some(limits())),
            server: Server::new(),
            way: VecDeque::new(),
            back: VecDeque::new(),
            came: Vec::new(),
            said: Vec::new(),
            records: HashMap::new(),
            prepared: Vec::new(),
            by_number: HashMap::new(),
            ended: None,
        }
    }

    fn take(&mut self, events: Vec<Event>, of: Option<usize>) {
        for event in events {
            match event {
                Event::Statement { statement, .. } if statement.kind == Kind::Prepare && statement.name.is_none() => {
                    self.prepared.extend(statement.sql().map(str::to_owned));
                }
                Event::Statement { number, statement } => {
                    let of = of.expect("a statement is told when it is said");
                    assert!(self.records.insert(of, Record { statement, not_run: false }).is_none(), "two records");
                    self.by_number.insert(number, of);
                }
                Event::NotRun { number } => {
                    let of = self.by_number[&number];
                    let record = self.records.get_mut(&of).unwrap();
                    assert!(!record.not_run, "{of} did not run twice");
                    record.not_run = true;
                }
                Event::File(_) => panic!("a file"),
            }
        }
    }

    fn say(&mut self, what: &Said, fails: bool, cut: u8) {
        let number = self.said.len();
        let bytes = model::said(what, number);
        let (first, second) = bytes.split_at(usize::from(cut) % bytes.len());
        self.said.push(what.clone());
        self.came.push(Came::Unread);
        let mut forwarded = 0;
        for part in [first, second].into_iter().filter(|part| !part.is_empty()) {
            let mut events = Vec::new();
            let pass = self.session.client(part, &mut events);
            forwarded += pass.forward;
            self.take(events, Some(number));
            match pass.stop {
                Some(Stop::OutOfProtocol(error)) => {
                    self.ended = Some(error);
                    break;
                }
                stop => assert_eq!((stop, pass.forward), (None, part.len())),
            }
        }
        if forwarded == bytes.len() {
            self.way.push_back((number, what.clone(), fails));
        }
    }

    fn handle(&mut self, count: usize) {
        for _ in 0..count {
            let Some((number, what, fails)) = self.way.pop_front() else { return };
            self.came[number] = self.server.handle(&what, number, fails);
            self.back.extend(std::mem::take(&mut self.server.out));
        }
    }

    fn deliver(&mut self, count: usize) {
        let bytes: Vec<u8> = self.back.drain(..count.min(self.back.len())).collect();
        let mut events = Vec::new();
        let pass = self.session.server(&bytes, &mut events);
        self.take(events, None);
        match pass.stop {
            Some(Stop::OutOfProtocol(error)) => self.ended = Some(error),
            stop => assert_eq!((stop, pass.forward), (None, bytes.len())),
        }
    }

    fn settle(&mut self) {
        self.handle(usize::MAX);
        self.deliver(usize::MAX);
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Say(what, fails, cut) => self.say(what, *fails, *cut),
            Step::Handle(count) => self.handle(usize::from(*count)),
            Step::Deliver(count) => self.deliver(usize::from(*count)),
            Step::Notice => {
                if self.server.out.is_empty() {
                    self.server.out.extend(encoded(b'N', &[b"SNOTICE\0\0"]));
                    self.back.extend(std::mem::take(&mut self.server.out));
                }
            }
            Step::FailCopy => {
                self.server.fail_copy();
                self.back.extend(std::mem::take(&mut self.server.out));
            }
            Step::Settle => self.settle(),
        }
    }

    fn run(steps: &[Step]) -> Self {
        let mut play = Self::new();
        for step in steps {
            play.step(step);
            if play.ended.is_some() {
                break;
            }
        }
        match &play.ended {
            None => play.settle(),
            // What has gone on still runs.
            Some(_) => play.handle(usize::MAX),
        }
        if let Some(OutOfProtocol { from, what }) = &play.ended {
            assert_eq!(*from, "client", "{what}");
            assert!(what.contains("COPY"), "{what}");
        }
        play
    }

    /// Texts of what has run, and how many of them are known.
    fn known(&self) -> (usize, usize) {
        let ran = self.came.iter().enumerate().filter(|(_, came)| matches!(came, Came::Ran(_)));
        let known = ran.clone().filter(|(number, _)| self.records[number].statement.sql().is_some());
        (ran.count(), known.count())
    }

    /// Records that are not taken back are what has run.
    fn check(&self) {
        for (number, (what, came)) in self.said.iter().zip(&self.came).enumerate() {
            let record = self.records.get(&number);
            let sql = record.and_then(|record| record.statement.sql());
            let counts = record.is_some_and(|record| !record.not_run);
            let context = || format!("{number}: {what:?} came to {came:?} and is {record:?}");
            match (what, came) {
                (Said::Execute { .. }, Came::Ran(text)) => {
                    assert!(counts, "{}", context());
                    assert!(sql.is_none_or(|sql| sql == text), "{}", context());
                    let is_told = |record: &Record| record.statement.sql() == Some(text);
                    let told = text.starts_with("of SQL")
                        || self.records.values().any(is_told)
                        || self.prepared.contains(text);
                    assert!(told, "{} and has no record of its text", context());
                }
                (Said::Query(_), Came::Ran(text)) => {
                    assert!(counts && sql == Some(text), "{}", context());
                }
                (Said::Function, Came::Ran(_)) => assert!(counts, "{}", context()),
                (Said::Parse(name, sql), Came::Done) => {
                    assert_eq!(counts, *name != 0, "{}", context());
                    let told = record.and_then(|record| record.statement.sql().map(str::to_owned));
                    assert_eq!(told, (*name != 0).then(|| model::text(sql, number)), "{}", context());
                }
                // A portal that is not there, which is not known.
                (Said::Execute { .. }, Came::Refused) => assert!(!counts || sql.is_none(), "{}", context()),
                (_, Came::Skipped | Came::Refused) if self.ended.is_none() => assert!(!counts, "{}", context()),
                _ => {}
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(cases()))]

    #[test]
    fn what_is_recorded_and_not_taken_back_is_what_the_server_runs(steps in steps(40)) {
        Play::run(&steps).check();
    }
}

/// A client that waits for each answer and has no SQL that plays with names is followed exactly.
#[test]
fn a_client_that_waits_is_followed_exactly() {
    let (said, settle) = (|said| Step::Say(said, false, 3), Step::Settle);
    let mut steps = Vec::new();
    for round in 0..40_u8 {
        let (portal, statement) = (round % 3, round / 2 % 3);
        if round % 2 == 0 && (statement == 0 || round < 6) {
            steps.extend([said(Said::Parse(statement, Sql::Select)), said(Said::Sync), settle.clone()]);
        } else if statement == 0 {
            steps.push(said(Said::Parse(0, Sql::Select)));
        }
        steps.extend([said(Said::Bind { portal, statement }), said(Said::DescribePortal(portal))]);
        steps.extend([said(Said::Execute { portal, rows: 1 }), said(Said::Execute { portal, rows: 0 })]);
        steps.extend([said(Said::Sync), settle.clone()]);
        if round % 7 == 1 {
            steps.extend([said(Said::Query(vec![Sql::Select, Sql::Fails])), settle.clone()]);
        }
    }
    let play = Play::run(&steps);
    play.check();
    assert_eq!(play.known(), (46, 46));
    assert!(play.records.values().all(|record| !record.not_run));
    // The second part of what a portal gives has no record.
    assert_eq!(play.records.values().filter(|record| record.statement.kind == Kind::Execute).count(), 40);
}

/// `SESSION_CASES` plays more of them; one has about 30 messages.
#[expect(clippy::disallowed_methods, reason = "of a test, and not of a relay")]
fn cases() -> u32 {
    std::env::var("SESSION_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(500)
}

fn encoded(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let mut out = BytesMut::new();
    message::encode(tag, &parts.concat(), &mut out);
    out.to_vec()
}

fn say(said: Said) -> Step {
    Step::Say(said, false, 3)
}

#[test]
fn what_replaces_a_text_behind_an_error_is_not_taken_for_it() {
    let none = Said::Execute { portal: 2, rows: 0 };
    let runs = [Said::Bind { portal: 0, statement: 0 }, Said::Execute { portal: 0, rows: 0 }, Said::Sync];
    for settles in [false, true] {
        let mut steps = vec![say(Said::Parse(0, Sql::Select)), say(none.clone()), say(Said::Parse(0, Sql::Select))];
        steps.push(say(Said::Sync));
        steps.extend(settles.then_some(Step::Settle));
        steps.extend(runs.clone().map(say));
        let play = Play::run(&steps);
        play.check();
        assert_eq!(play.came[5], Came::Ran("select 0".to_owned()));
        let known = play.records[&5].statement.sql();
        assert_eq!(known, settles.then_some("select 0"), "nothing is known before the answer");
    }
}

/// The same SQL in the extended protocol.
/// One Query forgets all names and gives one of them to another text.
#[test]
fn a_name_that_may_have_been_forgotten_and_given_anew_is_not_taken_for_the_old_text() {
    for settles in [false, true] {
        let mut steps = vec![say(Said::Parse(1, Sql::Select)), say(Said::Sync), Step::Settle];
        steps.push(say(Said::Query(vec![Sql::DeallocateAll, Sql::Prepare(1)])));
        steps.extend(settles.then_some(Step::Settle));
        steps.extend(run(0, 1).into_iter().chain([Said::Sync]).map(say));
        let play = Play::run(&steps);
        play.check();
        let number = play.said.len() - 2;
        assert!(matches!(&play.came[number], Came::Ran(text) if text != "select 0"), "{:?}", play.came[number]);
        assert_eq!(play.records[&number].statement.sql(), None, "what SQL has prepared is not known");
    }
}

fn run(portal: u8, statement: u8) -> [Said; 2] {
    [Said::Bind { portal, statement }, Said::Execute { portal, rows: 0 }]
}

#[test]
fn a_text_that_is_not_known_may_touch_every_name() {
    let mut steps = vec![say(Said::Parse(1, Sql::Select)), say(Said::Sync), Step::Settle];
    // Without an answer nobody knows what the two are.
    steps.extend([Said::Parse(2, Sql::Deallocate(1)), Said::Parse(0, Sql::Prepare(1)), Said::Sync].map(say));
    steps.extend(run(0, 2).into_iter().chain(run(0, 0)).chain([Said::Sync]).map(say));
    steps.push(Step::Settle);
    steps.extend(run(0, 1).into_iter().chain([Said::Sync]).map(say));
    let play = Play::run(&steps);
    play.check();
    assert_eq!(play.came[11], Came::Ran("of SQL: prepare n1 as select 3".to_owned()));
}

#[test]
fn names_that_the_server_takes_for_one_are_known_to_nobody() {
    let mut steps = vec![say(Said::Parse(model::LONG, Sql::Select)), say(Said::Sync), Step::Settle];
    steps.extend([Said::CloseStatement(model::LONGER), Said::Parse(model::LONGER, Sql::Select)].map(say));
    steps.extend(run(0, model::LONG).into_iter().chain([Said::Sync]).map(say));
    let play = Play::run(&steps);
    play.check();
    assert_eq!(play.came[5], Came::Ran("select 3".to_owned()));
}

#[test]
fn a_sync_within_a_copy_has_no_answer() {
    for (settles, fails) in [(false, false), (true, false), (true, true)] {
        let copy = [Said::Parse(0, Sql::CopyIn)].into_iter().chain(run(0, 0));
        let mut steps: Vec<_> = copy.map(say).collect();
        steps.extend(settles.then_some(Step::Settle));
        steps.extend([Said::Sync, Said::CopyData].map(say));
        steps.extend(fails.then_some(Step::FailCopy));
        steps.extend([Said::CopyDone, Said::Sync].map(say));
        steps.push(Step::Settle);
        steps.extend([Said::Parse(0, Sql::Select)].into_iter().chain(run(0, 0)).chain([Said::Sync]).map(say));
        let play = Play::run(&steps);
        play.check();
        assert_eq!((play.ended.as_ref(), play.known()), (None, (2, 2)), "{settles} {fails}");
        assert!(play.session.is_idle());
    }
}

#[test]
fn a_portal_does_not_outlive_its_transaction() {
    let bound = [Said::Parse(0, Sql::Select), Said::Bind { portal: 1, statement: 0 }];
    let execute = Said::Execute { portal: 1, rows: 0 };
    let end = |sql| Said::Query(vec![sql]);
    for (before, behind, exists, is_known) in [
        (vec![], vec![Said::Sync], false, false),
        (vec![end(Sql::Begin)], vec![Said::Sync], true, true),
        (vec![end(Sql::Begin)], vec![end(Sql::Select)], true, true),
        // It is broken.
        (vec![end(Sql::Begin)], vec![end(Sql::Fails)], true, false),
        (vec![end(Sql::Begin)], vec![end(Sql::Commit)], false, false),
    ] {
        let said: Vec<_> = before.into_iter().chain(bound.clone()).map(say).collect();
        let end = behind.into_iter().map(say);
        for settles in [true, false] {
            let mut said: Vec<_> =
                said.iter().cloned().chain([say(Said::Sync), Step::Settle]).chain(end.clone()).collect();
            said.extend(settles.then_some(Step::Settle));
            said.extend([execute.clone(), Said::Sync].map(say));
            let play = Play::run(&said);
            play.check();
            let number = play.said.len() - 2;
            assert_eq!(matches!(play.came[number], Came::Ran(_)), exists, "{said:?}");
            assert_eq!(play.records[&number].statement.sql().is_some(), is_known && settles, "{said:?}");
        }
    }
}

#[test]
fn nothing_behind_the_last_error_runs() {
    let (mut session, mut events) = (Session::new(Some(limits())), Vec::new());
    let query = |text: &[u8]| encoded(b'Q', &[text, b"\0"]);
    session.client(&[query(b"select 1"), query(b"select 2")].concat(), &mut events);
    session.server(&encoded(b'E', &[b"SFATAL\0VFATAL\0C57P01\0\0"]), &mut events);
    session.client(&query(b"select 3"), &mut events);
    let not_run = |event: &Event| if let Event::NotRun { number } = event { Some(*number) } else { None };
    assert_eq!(events.iter().filter_map(not_run).collect::<Vec<_>>(), [2, 3]);
}

/// What a session says of these bytes of a client, and how many of them go on.
fn told(bytes: &[u8]) -> (Vec<Event>, Pass) {
    let (mut session, mut events) = (Session::new(Some(limits())), Vec::new());
    let pass = session.client(bytes, &mut events);
    (events, pass)
}

fn statement(event: &Event) -> (Kind, Option<&str>, Option<&str>) {
    match event {
        Event::Statement { statement: Statement { kind, name, text, .. }, .. } => {
            (*kind, name.as_deref(), text.as_ref().and_then(|text| text.sql()))
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_long_name_takes_no_room_from_a_text() {
    let name = vec![b'n'; 9000];
    let (events, _) = told(&encoded(b'P', &[&name, b"\0delete from t\0\0\0"]));
    let shown = "n".repeat(63);
    assert_eq!(statement(&events[0]), (Kind::Prepare, Some(shown.as_str()), Some("delete from t")));
}

#[test]
fn a_text_that_comes_in_pieces_is_whole_and_a_long_one_is_cut() {
    let long = "x".repeat(100_000);
    for (text, kept) in [("select 'a'", "select 'a'"), (long.as_str(), &long[..4096])] {
        let stream = encoded(b'Q', &[text.as_bytes(), b"\0"]);
        let (mut session, mut events) = (Session::new(Some(limits())), Vec::new());
        for piece in stream.chunks(3) {
            assert_eq!(session.client(piece, &mut events), Pass { forward: piece.len(), stop: None });
        }
        assert_eq!(events.iter().map(statement).collect::<Vec<_>>(), [(Kind::Query, None, Some(kept))]);
    }
}

#[test]
fn what_is_kept_of_names_is_bounded_and_every_text_is_told() {
    let (mut session, mut events) = (Session::new(Some(limits())), Vec::new());
    for n in 0..2000 {
        let name = format!("s{n}\0");
        session.client(&encoded(b'P', &[name.as_bytes(), b"select 1\0\0\0"]), &mut events);
        session.client(&encoded(b'S', &[]), &mut events);
        session.server(&encoded(b'1', &[]), &mut events);
        session.server(&encoded(b'Z', &[b"I"]), &mut events);
    }
    assert_eq!(events.iter().filter(|event| statement(event).0 == Kind::Prepare).count(), 2000);
    events.clear();
    for (name, text) in [(&b"s1999\0"[..], Some("select 1")), (b"s0\0", None)] {
        session.client(&encoded(b'B', &[b"\0", name, &[0; 6]]), &mut events);
        session.client(&encoded(b'E', &[b"\0", &[0; 4]]), &mut events);
        assert_eq!(statement(&events.pop().unwrap()).2, text);
    }
}

#[test]
fn more_messages_than_there_is_memory_for_end_the_session_and_leave_the_others() {
    let memory = Memory::relay();
    let all = memory.asked.left();
    let session = || Session::new(Some(Limits::new(4096, None, &memory)));
    let (mut greedy, mut modest, flood) = (session(), session(), encoded(b'S', &[]).repeat(1000));
    let stops = (0..70).find_map(|_| greedy.client(&flood, &mut Vec::new()).stop);
    let Some(Stop::Full(full)) = stops else { panic!("{stops:?}") };
    assert_eq!(full.to_string(), "the memory for messages that wait for their answers is used up: 8192 KiB");
    // What a client asks at once needs nothing that others may have taken.
    let query = encoded(b'Q', &[b"select 1\0"]);
    assert_eq!(modest.client(&query, &mut Vec::new()), Pass { forward: query.len(), stop: None });
    // Answers give memory back, and so does the end.
    let mut busy = session();
    drop(greedy);
    assert_eq!(memory.asked.left(), all);
    assert_eq!(busy.client(&flood, &mut Vec::new()).stop, None);
    assert!(memory.asked.left() < all);
    assert_eq!(busy.server(&encoded(b'Z', &[b"I"]).repeat(1000), &mut Vec::new()).stop, None);
    assert_eq!(memory.asked.left(), all);
}

#[test]
fn what_is_no_message_ends_the_session_behind_what_is_one() {
    let good = encoded(b'Q', &[b"select 1\0"]);
    for (bad, what) in [
        (&b"y\0\0\0\x04"[..], "there is no message of the type 'y'"),
        (b"Q\0\0\0\x03", "a message of the type 'Q' cannot have the length 3"),
        (b"Q\x7f\xff\xff\xff", "a message of the type 'Q' cannot have the length 2147483647"),
    ] {
        let (events, pass) = told(&[&good, bad].concat());
        assert_eq!(events.iter().map(statement).collect::<Vec<_>>(), [(Kind::Query, None, Some("select 1"))]);
        let stop = Some(Stop::OutOfProtocol(OutOfProtocol { from: "client", what: what.to_owned() }));
        assert_eq!(pass, Pass { forward: good.len(), stop });
    }
    // Nobody is told, so nothing has to be known.
    assert_eq!(Session::new(None).client(b"y\0\0\0\x04", &mut Vec::new()), Pass { forward: 5, stop: None });
}

#[test]
fn settings_of_the_server_decide_what_a_literal_is() {
    let key = std::sync::Arc::new(crate::session::text::Key::new(&[7; 32]));
    let mut session = Session::new(Some(Limits::new(4096, Some(key), &Memory::relay())));
    let mut events = Vec::new();
    let setting = |value: &[u8]| encoded(b'S', &[b"standard_conforming_strings\0", value, b"\0"]);
    let query = encoded(b'Q', &[b"select '\\', 7; drop table t; --'\0"]);
    let answer = [encoded(b'C', &[b"SELECT 1\0"]), encoded(b'Z', &[b"I"])].concat();
    session.logged_in(&[setting(b"on"), encoded(b'Z', &[b"I"])].concat());
    session.client(&query, &mut events);
    session.server(&[setting(b"off"), answer].concat(), &mut events);
    session.client(&query, &mut events);
    // It may change them, and is not answered.
    session.client(&query, &mut events);
    let texts: Vec<_> = events.iter().map(|event| statement(event).2.unwrap()).collect();
    assert_eq!(texts, ["select ?, ?; drop table t; ", "select ?", "select"]);
}

fn words() -> ErrorText {
    ErrorText { sqlstate: "57P01".to_owned(), message: "it ends".to_owned(), ..ErrorText::default() }
}

#[test]
fn a_client_is_told_between_messages_and_not_within_one() {
    let stream = [encoded(b'D', &[b"row"]), encoded(b'N', &[])].concat();
    for end in 0..=stream.len() {
        let mut session = Session::new(None);
        session.server(&stream[..end], &mut Vec::new());
        assert_eq!(session.last_words(&words()).is_some(), [0, 8, 13].contains(&end), "{end}");
        let pass = session.server_message(&stream[end..], &mut Vec::new());
        let next = [8, 13].into_iter().find(|next| *next > end).unwrap_or(13);
        assert_eq!(pass, Pass { forward: next - end, stop: None });
    }
    let session = Session::new(None);
    for (said, tag) in [(session.last_words(&words()).unwrap(), b'E'), (session.notice(&words()), b'N')] {
        assert_eq!(message::decode(&mut BytesMut::from(&said[..])).unwrap().unwrap().tag, tag);
    }
}

#[test]
fn a_session_is_followed_from_its_first_byte_if_it_stays_in_clear() {
    let stream = [b"NN".to_vec(), encoded(b'R', &[&[0; 4]]), encoded(b'S', &[b"a\0b\0"])].concat();
    for end in 0..=stream.len() {
        let mut session = Session::login();
        for byte in &stream[..end] {
            session.server(&[*byte], &mut Vec::new());
        }
        assert_eq!(session.last_words(&words()).is_some(), [0, 1, 2, 11, 20].contains(&end), "{end}");
    }
    for encrypted in [&b"S"[..], b"NG", b"S\x16\x03\x03"] {
        let mut session = Session::login();
        session.server(encrypted, &mut Vec::new());
        assert!(session.last_words(&words()).is_none(), "{encrypted:?}");
    }
}
