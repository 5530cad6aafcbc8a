//! An error as people read it. `pg::message` and `mysql::packet` give it the form of their engine.

/// What the upstream said, or what the client is told.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ErrorText {
    /// MySQL's error number; 0 where the engine has none.
    pub number: u16,
    /// Five characters.
    pub sqlstate: String,
    pub message: String,
    pub detail: String,
    pub hint: String,
}

impl ErrorText {
    /// For the person at the terminal, who sees that it is bastion that speaks.
    pub fn sentence(&self) -> String {
        let parts = [&self.message, &self.detail, &self.hint];
        let parts: Vec<&str> =
            parts.into_iter().map(|part| part.trim_end_matches('.')).filter(|part| !part.is_empty()).collect();
        parts.join(". ").replacen("bastion: ", "", 1)
    }
}
