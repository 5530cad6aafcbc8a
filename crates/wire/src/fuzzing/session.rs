//! Sessions whose statements are told, with a client and a server that say whatever they like.

use std::sync::Arc;

use super::Input;
use crate::error_text::ErrorText;
use crate::memory::Memory;
use crate::mysql::agreed::Agreed;
use crate::mysql::capability::{
    CACHE_METADATA, DEPRECATE_EOF, LOCAL_FILES, NEEDED, OPTIONAL_METADATA, PROGRESS, QUERY_ATTRIBUTES,
};
use crate::mysql::server::Server;
use crate::session::text::{ARGUMENT_MAX, Key, Kind, Limits};
use crate::session::{Event, Pass, Session, Stop};

/// Bytes of a text that are kept here.
const TEXT_MAX: usize = 64;

fn limits(flags: u8) -> Limits {
    Limits::new(TEXT_MAX, (flags & 1 != 0).then(|| Arc::new(Key::new(&[7; 32]))), &Memory::relay())
}

/// One of two sessions that are given the same bytes, in other pieces.
struct Followed {
    session: Session,
    /// What may be held back of a direction.
    holds: usize,
    /// That is held back: of the server, of the client.
    held: [Vec<u8>; 2],
    events: Vec<Event>,
    forwarded: usize,
    stop: Option<Stop>,
}

impl Followed {
    fn new(session: Session, holds: usize) -> Self {
        Self { session, holds, held: [Vec::new(), Vec::new()], events: Vec::new(), forwarded: 0, stop: None }
    }

    fn take(&mut self, is_client: bool, run: &[u8], piece: usize) {
        for piece in run.chunks(piece) {
            let mut given = std::mem::take(&mut self.held[usize::from(is_client)]);
            given.extend_from_slice(piece);
            let Pass { forward, stop } = match is_client {
                true => self.session.client(&given, &mut self.events),
                false => self.session.server(&given, &mut self.events),
            };
            let held = given.split_off(forward);
            assert!(held.len() <= self.holds || stop.is_some(), "it holds {} bytes back", held.len());
            self.held[usize::from(is_client)] = held;
            self.forwarded += forward;
            self.stop = stop;
            if self.stop.is_some() {
                return;
            }
        }
    }
}

/// A file that is not given away is named as far as its name has come.
fn is_same(whole: Option<&Stop>, pieces: Option<&Stop>) -> bool {
    match (whole, pieces) {
        (Some(Stop::File(whole)), Some(Stop::File(pieces))) => whole.starts_with(pieces.trim_end_matches('\u{fffd}')),
        (whole, pieces) => whole == pieces,
    }
}

/// A client of PostgreSQL that is audited, and its upstream.
pub(super) fn postgres(data: &[u8]) {
    let mut input = Input(data);
    let flags = input.byte();
    let session = || Session::postgres((flags & 2 == 0).then(|| limits(flags)));
    follow(input, usize::from(flags >> 2), || Followed::new(session(), 0));
}

/// The same for MySQL and MariaDB, and for all that a login may agree on.
pub(super) fn mysql(data: &[u8]) {
    /// The name of a file, and what stands in front of it.
    const HOLDS: usize = 4 + 4096;
    let mut input = Input(data);
    let (flags, bits) = (input.byte(), input.byte());
    let has = |bit: u8, capability: u32| if bits & bit == 0 { 0 } else { capability };
    let agreed = Agreed {
        capabilities: NEEDED
            | has(1, DEPRECATE_EOF)
            | has(2, LOCAL_FILES)
            | has(4, OPTIONAL_METADATA)
            | has(8, QUERY_ATTRIBUTES),
        extended: has(16, CACHE_METADATA) | has(32, PROGRESS),
        server: if bits & 64 == 0 { Server::MariaDb } else { Server::MySql },
        stops_at_reset: bits & 128 != 0,
    };
    let session = || Session::mysql(agreed, &Memory::relay().asked, (flags & 2 == 0).then(|| limits(flags)));
    follow(input, usize::from(flags >> 2), || Followed::new(session(), HOLDS));
}

/// Statements are the same however the streams are cut; only what has a record can have not run, and once; texts are bounded;
/// a session that leaves the protocol ends at the same message. The input: runs of bytes, each with its length and its
/// direction before it.
fn follow(mut input: Input<'_>, cut: usize, followed: impl Fn() -> Followed) {
    let cut = cut.max(1);
    let (mut whole, mut pieces) = (followed(), followed());
    while !input.is_empty() && whole.stop.is_none() {
        let is_client = input.byte() & 1 == 0;
        let run = input.short();
        if run.is_empty() {
            continue;
        }
        whole.take(is_client, run, run.len());
        pieces.take(is_client, run, cut);
        assert_eq!(whole.events, pieces.events, "in pieces of {cut}");
        assert!(is_same(whole.stop.as_ref(), pieces.stop.as_ref()), "{:?} {:?}", whole.stop, pieces.stop);
        // What was cut in the middle of the message that ends it has gone on with its first part.
        assert!(whole.forwarded <= pieces.forwarded && (whole.stop.is_some() || whole.forwarded == pieces.forwarded));
        let text = ErrorText::default();
        if whole.forwarded == pieces.forwarded {
            assert_eq!(whole.session.is_idle(), pieces.session.is_idle());
            assert_eq!(whole.session.withholds(), pieces.session.withholds());
            assert_eq!(whole.session.last_words(&text), pieces.session.last_words(&text));
        }
        assert_eq!(whole.session.last_words(&text).is_some(), whole.session.is_between_messages());
    }
    whole.session.end(&mut whole.events);
    let mut open = std::collections::BTreeSet::new();
    for event in &whole.events {
        match event {
            Event::Statement { number, statement } => {
                assert!(open.insert(*number), "a number comes twice");
                // A literal of one byte may become `?`, an invalid byte U+FFFD of three.
                let length = statement.sql().map_or(0, str::len);
                let most = if statement.kind == Kind::Command { ARGUMENT_MAX } else { TEXT_MAX };
                assert!(length <= most * 3, "{length} bytes of a text are kept");
            }
            Event::NotRun { number } => assert!(open.remove(number), "{number} is taken back and was not told"),
            Event::File(file) => assert!(!file.name.is_empty(), "a file without a name"),
        }
    }
}
