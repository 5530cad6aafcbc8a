//! A session of PostgreSQL whose statements are told, with a client and a server that say whatever they like.

use super::Input;
use super::commands::{TEXT_MAX, limits};
use crate::wire::error_text::ErrorText;
use crate::wire::session::{Event, Pass, Session, Stop};

/// One of two sessions that are given the same bytes, in other pieces.
struct Followed {
    session: Session,
    events: Vec<Event>,
    forwarded: usize,
    stop: Option<Stop>,
}

impl Followed {
    fn new(flags: u8) -> Self {
        let session = Session::postgres((flags & 2 == 0).then(|| limits(flags)));
        Self { session, events: Vec::new(), forwarded: 0, stop: None }
    }

    fn take(&mut self, is_client: bool, run: &[u8], piece: usize) {
        for piece in run.chunks(piece) {
            let Pass { forward, stop } = match is_client {
                true => self.session.client(piece, &mut self.events),
                false => self.session.server(piece, &mut self.events),
            };
            assert!(forward == piece.len() || stop.is_some(), "it holds bytes back");
            self.forwarded += forward;
            self.stop = stop;
            if self.stop.is_some() {
                return;
            }
        }
    }
}

/// Statements are the same however the streams are cut; only what has a record can have not run, and once; texts are bounded;
/// a session that leaves the protocol ends at the same message. The input: runs of bytes, each with its length and its
/// direction before it.
pub(super) fn session(data: &[u8]) {
    let mut input = Input(data);
    let flags = input.byte();
    let cut = usize::from(flags >> 2).max(1);
    let (mut whole, mut pieces) = (Followed::new(flags), Followed::new(flags));
    while !input.is_empty() && whole.stop.is_none() {
        let is_client = input.byte() & 1 == 0;
        let run = input.short();
        if run.is_empty() {
            continue;
        }
        whole.take(is_client, run, run.len());
        pieces.take(is_client, run, cut);
        assert_eq!(whole.events, pieces.events, "in pieces of {cut}");
        assert_eq!(whole.stop, pieces.stop, "in pieces of {cut}");
        // What was cut in the middle of the message that ends it has gone on with its first part.
        assert!(whole.forwarded <= pieces.forwarded && (whole.stop.is_some() || whole.forwarded == pieces.forwarded));
        assert_eq!(whole.session.is_idle(), pieces.session.is_idle());
        let text = ErrorText::default();
        assert_eq!(whole.session.last_words(&text).is_some(), whole.session.is_between_messages());
    }
    let mut open = std::collections::BTreeSet::new();
    for event in &whole.events {
        match event {
            Event::Statement { number, statement } => {
                assert!(open.insert(*number), "a number comes twice");
                // A literal of one byte may become `?`, an invalid byte U+FFFD of three.
                let length = statement.sql().map_or(0, str::len);
                assert!(length <= TEXT_MAX * 3, "{length} bytes of a text are kept");
            }
            Event::NotRun { number } => assert!(open.remove(number), "{number} is taken back and was not told"),
            Event::File(_) => panic!("PostgreSQL asks for no files"),
        }
    }
}
