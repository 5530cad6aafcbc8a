//! Statements of PostgreSQL's simple and extended protocol, off the client's side alone: every message of a client has a
//! type and a length (PostgreSQL manual, "Message Formats"), in every phase after the startup packet, COPY included.
//!
//! The extended protocol runs what was bound: Parse gives a text a name, Bind gives a statement to a portal, Execute runs
//! the portal. A text is reported where it runs, where it gets a name that may outlive what is kept here, and where it is
//! forgotten: the server skips messages after an error, so what was replaced here may still run there.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::wire::redact::Dialect;
use crate::wire::statements::{Kind, Limits, Recent, Statement, Text};

/// Names are short; a longer one cuts the text that follows it.
const NAMES: usize = 512;
/// Bytes of a name by which the server tells statements and portals apart (`NAMEDATALEN`).
const NAME: usize = 63;

/// A text, and whether it was reported.
struct Known {
    text: Text,
    told: AtomicBool,
}

impl Known {
    fn tell(&self) -> Text {
        self.told.store(true, Ordering::Relaxed);
        self.text.clone()
    }
}

/// What a portal runs.
struct Portal {
    name: Vec<u8>,
    text: Option<Arc<Known>>,
    /// A portal that is fetched from in parts runs once.
    ran: bool,
}

enum State {
    Head,
    /// The body of a message that is of interest.
    Body {
        tag: u8,
        missing: usize,
    },
    /// The rest of a message that is not.
    Skip(usize),
    Lost,
}

/// See the module.
pub struct Observer {
    limits: Limits,
    state: State,
    /// Type and length, as far as they have come.
    head: Vec<u8>,
    /// The body, as far as it has come and is kept.
    kept: Vec<u8>,
    statements: Recent<Vec<u8>, Arc<Known>>,
    portals: Recent<Vec<u8>, Portal>,
}

impl Observer {
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            state: State::Head,
            head: Vec::with_capacity(5),
            kept: Vec::new(),
            statements: Recent::default(),
            portals: Recent::default(),
        }
    }

    /// Bytes of the client, in order; what they run is appended to `found`.
    pub fn up(&mut self, mut bytes: &[u8], found: &mut Vec<Statement>) {
        while !bytes.is_empty() {
            match &mut self.state {
                State::Head => {
                    let wanted = 5_usize.saturating_sub(self.head.len()).min(bytes.len());
                    let (now, later) = bytes.split_at(wanted);
                    self.head.extend_from_slice(now);
                    bytes = later;
                    if let Some(&[tag, a, b, c, d]) = self.head.first_chunk::<5>() {
                        self.head.clear();
                        let length = u32::from_be_bytes([a, b, c, d]);
                        self.begin(tag, length, found);
                    }
                }
                &mut State::Body { tag, ref mut missing } => {
                    let (now, later) = bytes.split_at((*missing).min(bytes.len()));
                    *missing = missing.saturating_sub(now.len());
                    bytes = later;
                    let whole = *missing == 0;
                    let room = self.limits.text.saturating_add(NAMES).saturating_sub(self.kept.len());
                    let now = now.get(..room).unwrap_or(now);
                    if whole && self.kept.is_empty() {
                        // Nearly all come in one piece, which needs no copy.
                        self.finish(tag, now, found);
                    } else {
                        self.kept.extend_from_slice(now);
                        if whole {
                            let kept = std::mem::take(&mut self.kept);
                            self.finish(tag, &kept, found);
                        }
                    }
                }
                State::Skip(missing) => {
                    let (now, later) = bytes.split_at((*missing).min(bytes.len()));
                    *missing = missing.saturating_sub(now.len());
                    bytes = later;
                    if *missing == 0 {
                        self.state = State::Head;
                    }
                }
                State::Lost => return,
            }
        }
    }

    fn begin(&mut self, tag: u8, length: u32, found: &mut Vec<Statement>) {
        // A server ends the connection here; nothing after it runs.
        let Some(body) = length.checked_sub(4).and_then(|body| usize::try_from(body).ok()) else {
            self.state = State::Lost;
            found.push(Statement::new(Kind::Unreadable, None, None));
            return;
        };
        let of_interest = matches!(tag, b'B' | b'C' | b'E' | b'F' | b'P' | b'Q');
        match (of_interest, body) {
            (true, 0) => self.finish(tag, &[], found),
            (true, _) => self.state = State::Body { tag, missing: body },
            (false, 0) => {}
            (false, _) => self.state = State::Skip(body),
        }
    }

    /// A message has ended, of whose body `rest` is the start.
    fn finish(&mut self, tag: u8, mut rest: &[u8], found: &mut Vec<Statement>) {
        self.state = State::Head;
        match tag {
            b'Q' => {
                found.push(Statement::new(Kind::Query, None, Some(self.text(rest))));
            }
            b'P' => {
                let name = take_name(&mut rest);
                let known = Arc::new(Known { text: self.text(rest), told: AtomicBool::new(false) });
                if !name.is_empty() {
                    found.push(Statement::new(Kind::Prepare, shown(&name), Some(known.tell())));
                }
                forget(self.statements.insert(name, known), found);
            }
            b'B' => {
                let portal = take_name(&mut rest);
                let name = take_name(&mut rest);
                let text = self.statements.get(name.as_slice()).cloned();
                let before = self.portals.insert(portal, Portal { name, text, ran: false });
                forget(before.and_then(|portal| portal.text), found);
            }
            b'E' => match self.portals.get_mut(take_name(&mut rest).as_slice()) {
                Some(Portal { ran: true, .. }) => {}
                Some(Portal { name, text, ran }) => {
                    *ran = true;
                    found.push(Statement::new(Kind::Execute, shown(name), text.as_deref().map(Known::tell)));
                }
                // It is no longer kept, or a cursor of SQL.
                None => found.push(Statement::new(Kind::Execute, None, None)),
            },
            b'C' => match rest.split_first() {
                Some((b'S', mut name)) => {
                    forget(self.statements.remove(take_name(&mut name).as_slice()), found);
                }
                Some((b'P', mut name)) => {
                    let before = self.portals.remove(take_name(&mut name).as_slice());
                    forget(before.and_then(|portal| portal.text), found);
                }
                _ => {}
            },
            b'F' => {
                let function = rest.first_chunk::<4>().map(|oid| u32::from_be_bytes(*oid).to_string());
                found.push(Statement::new(Kind::Function, function, None));
            }
            _ => {}
        }
    }

    /// A text up to its terminator, or as much of it as was kept.
    fn text(&self, bytes: &[u8]) -> Text {
        let whole = bytes.iter().position(|byte| *byte == 0);
        let bytes = bytes.get(..whole.unwrap_or(bytes.len())).unwrap_or_default();
        self.limits.apply(bytes, whole.is_none(), Dialect::Postgres)
    }
}

/// Reports a text that is kept no longer, unless that was done.
fn forget(known: Option<Arc<Known>>, found: &mut Vec<Statement>) {
    if let Some(known) = known.filter(|known| !known.told.load(Ordering::Relaxed)) {
        found.push(Statement::new(Kind::Prepare, None, Some(known.tell())));
    }
}

/// Takes a name and its terminator off the front. Bytes, because their encoding is the client's choice.
fn take_name(bytes: &mut &[u8]) -> Vec<u8> {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    let (name, rest) = bytes.split_at(end);
    *bytes = rest.get(1..).unwrap_or_default();
    name.get(..NAME).unwrap_or(name).to_vec()
}

/// A name for people, if there is one.
fn shown(name: &[u8]) -> Option<String> {
    (!name.is_empty()).then(|| String::from_utf8_lossy(name).into_owned())
}

#[cfg(test)]
mod tests {
    use bytes::{BufMut as _, BytesMut};
    use proptest::prelude::*;

    use super::*;
    use crate::wire::pg::message;
    use crate::wire::statements::KEPT;

    const LIMITS: Limits = Limits { text: 64, redact: false };

    fn message(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
        let mut out = BytesMut::new();
        message::encode(tag, &parts.concat(), &mut out);
        out.to_vec()
    }

    fn found(limits: Limits, chunks: &[&[u8]]) -> Vec<Statement> {
        let (mut observer, mut found) = (Observer::new(limits), Vec::new());
        for chunk in chunks {
            observer.up(chunk, &mut found);
        }
        found
    }

    fn statement(kind: Kind, name: Option<&str>, sql: Option<&str>) -> Statement {
        Statement { kind, name: name.map(str::to_owned), sql: sql.map(str::to_owned), truncated: false }
    }

    /// A stream with every kind of message, and what is in it.
    fn conversation() -> (Vec<u8>, Vec<Statement>) {
        let stream = [
            message(b'Q', &[b"select 1\0"]),
            message(b'P', &[b"\0", b"select $1\0", &[0, 0]]),
            message(b'B', &[b"\0", b"\0", &[0, 0, 0, 0, 0, 0]]),
            message(b'D', &[b"P\0"]),
            message(b'E', &[b"\0", &[0, 0, 0, 0]]),
            message(b'S', &[]),
            message(b'P', &[b"s1\0", b"delete from orders where id = $1\0", &[0, 0]]),
            message(b'B', &[b"p1\0", b"s1\0", &[0, 0, 0, 0, 0, 0]]),
            message(b'E', &[b"p1\0", &[0, 0, 0, 5]]),
            // The next rows of the same run.
            message(b'E', &[b"p1\0", &[0, 0, 0, 5]]),
            message(b'C', &[b"Ss1\0"]),
            message(b'B', &[b"\0", b"s1\0", &[0, 0, 0, 0, 0, 0]]),
            message(b'E', &[b"\0", &[0, 0, 0, 0]]),
            message(b'd', &[b"Q\0\0\0\x0bnot SQL\0"]),
            message(b'c', &[]),
            message(b'F', &[&[0, 0, 4, 210], &[0, 0]]),
            message(b'Q', &["select '片山'\0".as_bytes()]),
            message(b'X', &[]),
        ];
        let delete = Some("delete from orders where id = $1");
        let found = vec![
            statement(Kind::Query, None, Some("select 1")),
            statement(Kind::Execute, None, Some("select $1")),
            statement(Kind::Prepare, Some("s1"), delete),
            statement(Kind::Execute, Some("s1"), delete),
            statement(Kind::Execute, Some("s1"), None),
            statement(Kind::Function, Some("1234"), None),
            statement(Kind::Query, None, Some("select '片山'")),
        ];
        (stream.concat(), found)
    }

    #[test]
    fn every_way_to_run_a_text_is_found() {
        let (stream, expected) = conversation();
        assert_eq!(found(LIMITS, &[&stream]), expected);
    }

    proptest! {
        #[test]
        fn any_chunking_finds_the_same(cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..20)) {
            let (stream, expected) = conversation();
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len())).collect();
            cuts.push(0);
            cuts.push(stream.len());
            cuts.sort_unstable();
            let chunks: Vec<&[u8]> = cuts.windows(2).map(|cut| &stream[cut[0]..cut[1]]).collect();
            prop_assert_eq!(found(LIMITS, &chunks), expected);
        }

        #[test]
        fn no_bytes_panic_or_fill_the_memory(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
            let (mut observer, mut found) = (Observer::new(LIMITS), Vec::new());
            for chunk in bytes.chunks(7) {
                observer.up(chunk, &mut found);
            }
            for statement in found {
                prop_assert!(statement.sql.is_none_or(|sql| sql.len() <= 3 * LIMITS.text));
            }
        }
    }

    #[test]
    fn a_long_text_is_cut_and_what_follows_is_still_found() {
        let long = "x".repeat(1_000_000);
        let stream = [message(b'Q', &[long.as_bytes(), b"\0"]), message(b'Q', &[b"select 2\0"])].concat();
        let found = found(LIMITS, &stream.chunks(8192).collect::<Vec<_>>());
        assert_eq!(found[0], Statement { truncated: true, ..statement(Kind::Query, None, Some(&"x".repeat(64))) });
        assert_eq!(found[1], statement(Kind::Query, None, Some("select 2")));
    }

    #[test]
    fn many_prepared_statements_cost_bounded_memory_and_their_texts_are_in_the_log() {
        let (mut observer, mut found) = (Observer::new(LIMITS), Vec::new());
        for n in 0..10_000 {
            let name = format!("s{n}\0");
            observer.up(&message(b'P', &[name.as_bytes(), b"select 1\0", &[0, 0]]), &mut found);
            observer.up(&message(b'B', &[name.as_bytes(), name.as_bytes(), &[0, 0]]), &mut found);
        }
        assert_eq!(found.iter().filter(|statement| statement.kind == Kind::Prepare).count(), 10_000);
        assert_eq!((observer.statements.len(), observer.portals.len()), (KEPT, KEPT));
        found.clear();
        observer.up(&message(b'E', &[b"s9999\0", &[0, 0, 0, 0]]), &mut found);
        assert_eq!(found, [statement(Kind::Execute, Some("s9999"), Some("select 1"))]);
    }

    fn parse(text: &str) -> Vec<u8> {
        message(b'P', &[b"\0", text.as_bytes(), &[0, 0, 0]])
    }

    fn bind(portal: &[u8]) -> Vec<u8> {
        message(b'B', &[portal, &[0, 0, 0, 0, 0, 0, 0, 0]])
    }

    fn execute(portal: &[u8]) -> Vec<u8> {
        message(b'E', &[portal, &[0, 0, 0, 0, 0]])
    }

    #[test]
    fn a_text_that_is_forgotten_before_it_runs_is_told() {
        let forgotten = statement(Kind::Prepare, None, Some("drop table t"));
        let ran = statement(Kind::Execute, None, Some("select 1"));
        // After an error the server may have skipped what replaces it here.
        for stream in [
            [parse("drop table t"), parse("select 1"), bind(b""), execute(b"")].concat(),
            [parse("drop table t"), bind(b""), parse("select 1"), bind(b""), execute(b"")].concat(),
            [parse("drop table t"), message(b'C', &[b"S\0"]), parse("select 1"), bind(b""), execute(b"")].concat(),
        ] {
            assert_eq!(found(LIMITS, &[&stream]), [forgotten.clone(), ran.clone()]);
        }
        let mut stream = [parse("drop table t"), bind(b"first")].concat();
        stream.extend([parse("select 1"), bind(b""), execute(b"")].concat());
        let others = (0..KEPT).flat_map(|n| bind(format!("p{n}").as_bytes()));
        stream.extend(others.chain(execute(b"first")));
        let unknown = statement(Kind::Execute, None, None);
        assert_eq!(found(LIMITS, &[&stream]), [forgotten, ran, unknown]);
    }

    #[test]
    fn names_are_the_same_where_the_server_takes_them_for_the_same() {
        let long = |end: &str| format!("{}{end}", "x".repeat(NAME));
        let stream = [parse("select 1"), bind(long("a").as_bytes()), execute(long("b").as_bytes())].concat();
        assert_eq!(found(LIMITS, &[&stream]), [statement(Kind::Execute, None, Some("select 1"))]);
        // As in Latin-1.
        let mut stream = [parse("drop table t"), bind(b"\xe9"), parse("select 1"), bind(b"\xe8")].concat();
        stream.extend([execute(b"\xe9"), execute(b"\xe8")].concat());
        let ran = |sql| statement(Kind::Execute, None, Some(sql));
        let forgotten = statement(Kind::Prepare, None, Some("drop table t"));
        assert_eq!(found(LIMITS, &[&stream]), [forgotten, ran("drop table t"), ran("select 1")]);
    }

    #[test]
    fn an_impossible_length_ends_the_reading_and_says_so() {
        let mut stream = BytesMut::from(&b"Q"[..]);
        stream.put_u32(3);
        stream.put_slice(&message(b'Q', &[b"select 1\0"]));
        assert_eq!(found(LIMITS, &[&stream]), [statement(Kind::Unreadable, None, None)]);
    }

    #[test]
    fn literals_become_question_marks() {
        let stream = message(b'Q', &[b"select 'S3CRET', 17\0"]);
        let found = found(Limits { redact: true, ..LIMITS }, &[&stream]);
        assert_eq!(found, [statement(Kind::Query, None, Some("select ?, ?"))]);
    }
}
