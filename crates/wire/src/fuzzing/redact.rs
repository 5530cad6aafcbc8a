//! Texts of statements: collected in pieces, and without their literals.

use std::sync::Arc;

use super::Input;
use crate::memory::Memory;
use crate::redact::{self, Dialect, How, Modes};
use crate::session::text::{Collector, Key, Limits, TEXT_MAX};

const NAMES: [&[u8]; 3] = [b"UTF8", b"GBK", b"SJIS"];

/// A text becomes no longer, whatever is known of the session, and is the same in pieces.
pub(super) fn redact(data: &[u8]) {
    let mut input = Input(data);
    let flags = input.byte();
    let cut = usize::from(input.byte()).max(1);
    let dialect = if flags & 1 == 0 { Dialect::Mysql } else { Dialect::Postgres };
    let mut modes = Modes::default();
    if flags & 2 != 0 {
        modes.status(u16::from(flags & 4) << 7);
    }
    if let Some(name) = NAMES.get(usize::from(flags >> 3 & 3)) {
        modes.parameter(b"client_encoding", name);
    }
    let (redacted, how) = redact::redact(input.0, dialect, modes);
    assert!(redacted.len() <= input.0.len(), "longer than the text");
    let is_word = |byte: &u8| byte.is_ascii_alphanumeric() || *byte >= 0x80 || b"_$".contains(byte);
    assert!(how == How::Literals || redacted.iter().all(is_word), "a verb is a word");

    let limits = Limits::new(TEXT_MAX, (flags & 0x20 != 0).then(|| Arc::new(Key::new(&[7; 32]))), &Memory::relay());
    let mut collector = Collector::new(limits, dialect);
    let whole = collector.whole(input.0, modes);
    input.0.chunks(cut).for_each(|piece| collector.push(piece));
    assert_eq!(collector.finish(modes), whole, "in pieces of {cut}");
}
