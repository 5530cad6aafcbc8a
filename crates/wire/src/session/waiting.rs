//! Memory for what a client has asked and the server has not answered.

use crate::memory::{Budget, Full, Share};

/// So many messages are their connection's own.
const FREE: usize = 64;
/// What a message costs at most where statements are told: itself, what it does to names, and a text that is told already.
pub(super) const TOLD: usize = 384;

/// See the module.
pub(super) struct Waiting {
    share: Share,
    /// Bytes of a message.
    cost: usize,
}

impl Waiting {
    pub(super) fn new(asked: &Budget, cost: usize) -> Self {
        Self { share: asked.share(), cost }
    }

    /// Takes memory for so many messages, or gives back what they do not need. Less always works.
    pub(super) fn hold(&mut self, messages: usize) -> Result<(), Full> {
        let bytes = messages.saturating_sub(FREE).next_multiple_of(FREE).saturating_mul(self.cost);
        self.share.resize(bytes)
    }
}
