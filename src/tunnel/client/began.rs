//! What a client and the relay have said to each other so far, as far as the launcher has to know it.

use std::sync::atomic::{AtomicBool, Ordering};

use bastion_wire::mysql::capability;
use bastion_wire::session::Session;

use crate::types::Engine;

/// Head and capabilities of a MySQL packet.
const HEAD: usize = 8;

/// What has gone through already, and cannot be taken back.
pub(super) struct Began {
    /// The client has closed its side.
    pub(super) closed: bool,
    /// Bytes of the client, besides its opening.
    pub(super) up: bool,
    /// Bytes for the client.
    pub(super) down: bool,
    /// Where those stand, if that can be known.
    pub(super) stream: Option<Session>,
    /// The start of a MySQL client's first packet: its head and its capabilities.
    pub(super) head: Option<Vec<u8>>,
    /// Those announce a stream that cannot be followed.
    pub(super) hidden: AtomicBool,
}

impl Began {
    pub(super) fn new(engine: Engine) -> Self {
        let stream = match engine {
            Engine::Mysql => Some(Session::mysql_login()),
            Engine::Postgres => Some(Session::postgres_login()),
            Engine::Tcp => None,
        };
        let head = (engine == Engine::Mysql).then(Vec::new);
        Self { closed: false, up: false, down: false, stream, head, hidden: AtomicBool::new(false) }
    }
}

/// Looks at what a client sends, on its way.
pub(super) fn heard(began_up: &mut bool, head: &mut Option<Vec<u8>>, hidden: &AtomicBool, bytes: &[u8]) {
    *began_up = true;
    if let Some(head) = head.as_mut().filter(|head| head.len() < HEAD) {
        head.extend(bytes.iter().take(HEAD.saturating_sub(head.len())));
        hidden.store(capability::hides_the_rest(head), Ordering::Relaxed);
    }
}

/// Follows what a client was sent.
pub(super) fn sent(began_down: &mut bool, stream: &mut Option<Session>, bytes: &[u8]) {
    *began_down = true;
    if stream.as_mut().is_some_and(|stream| stream.server(bytes, &mut Vec::new()).stop.is_some()) {
        *stream = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mysql_client_that_will_encrypt_or_compress_is_followed_no_more() {
        let login = |capabilities: u32| [&[32, 0, 0, 1][..], &capabilities.to_le_bytes(), &[0; 24]].concat();
        for (engine, bytes, hidden) in [
            (Engine::Mysql, login(capability::NEEDED), false),
            (Engine::Mysql, login(capability::NEEDED | capability::SSL), true),
            (Engine::Mysql, login(capability::NEEDED | capability::COMPRESS), true),
            (Engine::Postgres, login(capability::SSL), false),
        ] {
            for cut in 1..=bytes.len() {
                let mut began = Began::new(engine);
                for piece in bytes.chunks(cut).chain([&[0xff; 64][..]]) {
                    heard(&mut began.up, &mut began.head, &began.hidden, piece);
                }
                assert!(began.up);
                assert_eq!(began.hidden.load(Ordering::Relaxed), hidden, "{engine:?} in pieces of {cut}");
            }
        }
    }
}
