//! Cuts a direction into messages: a type, a length that counts itself, a body (PostgreSQL manual, "Message Formats").

/// Type and length.
const HEAD: usize = 5;
/// Longest body of a message: the server holds a message in one piece (`MaxAllocSize`).
const BODY_MAX: u32 = 0x3fff_ffff;

/// What the front of some bytes is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part<'b> {
    /// The start of a head.
    Head,
    /// A message begins here. If it has no body, that is all of it.
    Begin { tag: u8, is_whole: bool },
    /// Some of the body of a message, to its end or not.
    Body { tag: u8, bytes: &'b [u8], is_whole: bool },
    /// No length is like this.
    Impossible { tag: u8, length: u32 },
}

/// Where a direction stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Framer {
    head: [u8; HEAD],
    /// Bytes of the head that have come.
    have: usize,
    /// Bytes of the body that have not.
    missing: usize,
}

impl Framer {
    /// Takes the next part off the front of `bytes`, which are some.
    pub(super) fn next<'b>(&mut self, bytes: &mut &'b [u8]) -> Part<'b> {
        if self.missing > 0 {
            let (body, rest) = bytes.split_at(self.missing.min(bytes.len()));
            self.missing = self.missing.saturating_sub(body.len());
            *bytes = rest;
            let [tag, ..] = self.head;
            return Part::Body { tag, bytes: body, is_whole: self.missing == 0 };
        }
        // Nearly all heads come whole.
        if self.have == 0
            && let Some((head, rest)) = bytes.split_first_chunk::<HEAD>()
        {
            self.head = *head;
            *bytes = rest;
        } else {
            let (now, rest) = bytes.split_at(HEAD.saturating_sub(self.have).min(bytes.len()));
            for (to, from) in self.head.iter_mut().skip(self.have).zip(now) {
                *to = *from;
            }
            self.have = self.have.saturating_add(now.len());
            *bytes = rest;
            if self.have < HEAD {
                return Part::Head;
            }
        }
        self.have = 0;
        let [tag, a, b, c, d] = self.head;
        let length = u32::from_be_bytes([a, b, c, d]);
        match length.checked_sub(4).filter(|body| *body <= BODY_MAX) {
            None => Part::Impossible { tag, length },
            Some(body) => {
                self.missing = usize::try_from(body).unwrap_or(usize::MAX);
                Part::Begin { tag, is_whole: body == 0 }
            }
        }
    }

    pub(super) fn is_between_messages(&self) -> bool {
        self.have == 0 && self.missing == 0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The messages of a stream that is given in pieces.
    fn messages(stream: &[u8], piece: usize) -> (Vec<(u8, Vec<u8>)>, bool) {
        let (mut framer, mut found, mut body) = (Framer::default(), Vec::new(), Vec::new());
        for mut bytes in stream.chunks(piece) {
            while !bytes.is_empty() {
                match framer.next(&mut bytes) {
                    Part::Head => {}
                    Part::Begin { tag, is_whole } => {
                        if is_whole {
                            found.push((tag, Vec::new()));
                        }
                    }
                    Part::Body { tag, bytes, is_whole } => {
                        body.extend_from_slice(bytes);
                        if is_whole {
                            found.push((tag, std::mem::take(&mut body)));
                        }
                    }
                    Part::Impossible { .. } => return (found, true),
                }
            }
        }
        assert_eq!(framer.is_between_messages(), body.is_empty());
        (found, false)
    }

    proptest! {
        #[test]
        fn messages_are_the_same_however_they_are_cut(
            wanted in prop::collection::vec((any::<u8>(), prop::collection::vec(any::<u8>(), 0..20)), 0..20),
            piece in 1_usize..40,
            ends_badly: bool,
        ) {
            let mut stream = Vec::new();
            for (tag, body) in &wanted {
                stream.push(*tag);
                stream.extend(u32::try_from(body.len() + 4).unwrap().to_be_bytes());
                stream.extend(body);
            }
            if ends_badly {
                stream.extend(b"Q\0\0\0\x03");
            }
            prop_assert_eq!(messages(&stream, piece), (wanted, ends_badly));
        }
    }

    #[test]
    fn impossible_lengths_are_told() {
        for length in [0_u32, 3, 0x4000_0004, u32::MAX] {
            let mut bytes = &[&b"Q"[..], &length.to_be_bytes()].concat()[..];
            assert_eq!(Framer::default().next(&mut bytes), Part::Impossible { tag: b'Q', length });
        }
    }
}
