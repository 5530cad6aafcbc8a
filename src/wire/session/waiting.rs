//! Memory for what a client has asked and the server has not answered.

use crate::wire::memory::{Full, Share};
use crate::wire::session::text::Limits;

/// So many messages are their connection's own.
const FREE: usize = 64;
/// What a message costs at most: itself, what it does to names, and a text that is told already.
const COST: usize = 384;

/// See the module.
pub(super) struct Waiting(Share);

impl Waiting {
    pub(super) fn new(limits: &Limits) -> Self {
        Self(limits.asked.share())
    }

    /// Takes memory for so many messages, or gives back what they do not need. Less always works.
    pub(super) fn hold(&mut self, messages: usize) -> Result<(), Full> {
        let bytes = messages.saturating_sub(FREE).next_multiple_of(FREE).saturating_mul(COST);
        if bytes == self.0.bytes() { Ok(()) } else { self.0.resize(bytes) }
    }
}
