//! Configuration mistakes, collected so that one start reports them all.

use std::fmt;

/// One mistake: where, which key, what is wrong and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Problem {
    source: String,
    key: String,
    message: String,
    fix: String,
}

/// Every mistake of one configuration, in the order found. Values of secrets never enter it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Problems(Vec<Problem>);

impl Problems {
    pub(crate) fn add(&mut self, source: &str, key: &str, message: impl Into<String>, fix: impl Into<String>) {
        self.0.push(Problem {
            source: source.to_owned(),
            key: key.to_owned(),
            message: message.into(),
            fix: fix.into(),
        });
    }

    /// Adds what another part of the same start found.
    #[cfg(feature = "relay")]
    pub(crate) fn join(&mut self, others: Self) {
        self.0.extend(others.0);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds `others`, each with the source and key that `place` gives for its key; those without a place are dropped.
    #[cfg(feature = "launcher")]
    pub(super) fn append(&mut self, others: Self, place: impl Fn(&str) -> Option<(String, String)>) {
        let placed = others.0.into_iter().filter_map(|problem| {
            let (source, key) = place(&problem.key)?;
            Some(Problem { source, key, ..problem })
        });
        self.0.extend(placed);
    }

    /// `value` if nothing is wrong, otherwise all the problems.
    pub(crate) fn finish<T>(self, value: Option<T>) -> Result<T, Self> {
        match value {
            Some(value) if self.0.is_empty() => Ok(value),
            _ => Err(self),
        }
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, Problem { source, key, message, fix }) in self.0.iter().enumerate() {
            if n > 0 {
                writeln!(f)?;
            }
            match key.as_str() {
                "" => write!(f, "{source}: {message}; {fix}")?,
                _ => write!(f, "{source}: {key}: {message}; {fix}")?,
            }
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}
