//! The handle that changes faults while sessions run.

use std::sync::Arc;
use std::sync::PoisonError;

use super::Inner;
use super::knobs::Change;
use super::knobs::Event;
use super::knobs::Knobs;

/// Cheap to clone. An administration endpoint hands a parsed [`Change`] to [`Faults::apply`].
#[derive(Clone)]
pub struct Faults(pub(super) Arc<Inner>);

impl Faults {
    /// The knobs of sessions that have none of their own.
    #[must_use]
    pub fn knobs(&self) -> Knobs {
        self.0.knobs.lock().unwrap_or_else(PoisonError::into_inner).as_ref().clone()
    }

    /// Sets the knobs of every session, also of those started later.
    ///
    /// # Errors
    /// Names the knob that is out of range.
    pub fn set_all(&self, knobs: Knobs) -> Result<(), String> {
        self.apply(&Change { knobs: Some(knobs), ..Change::default() }).map(drop)
    }

    /// Sets the knobs of one session.
    ///
    /// # Errors
    /// Names the knob that is out of range, or the session that does not exist.
    pub fn set(&self, session_id: &str, knobs: Knobs) -> Result<(), String> {
        let session = Some(session_id.to_owned());
        self.apply(&Change { session, knobs: Some(knobs), event: None }).map(drop)
    }

    /// Makes something happen to one session, or to all.
    ///
    /// # Errors
    /// Names the session that does not exist.
    pub fn happen(&self, session_id: Option<&str>, event: Event) -> Result<(), String> {
        let session = session_id.map(str::to_owned);
        self.apply(&Change { session, knobs: None, event: Some(event) }).map(drop)
    }

    /// Does what the change says; returns how many running sessions it reached.
    ///
    /// # Errors
    /// Names the knob that is out of range, or the session that does not exist. Nothing is changed then.
    pub fn apply(&self, change: &Change) -> Result<usize, String> {
        if let Some(knobs) = &change.knobs {
            knobs.check()?;
        }
        let sessions = match &change.session {
            Some(id) => {
                vec![self.0.session(id).ok_or_else(|| format!("no session {id:?}: start it first, or leave it out"))?]
            }
            None => self.0.sessions(),
        };
        if let Some(knobs) = &change.knobs {
            let knobs = Arc::new(knobs.clone());
            if change.session.is_none() {
                *self.0.knobs.lock().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&knobs);
            }
            for session in &sessions {
                session.knobs.send_replace(Arc::clone(&knobs));
            }
        }
        if let Some(event) = change.event {
            for session in &sessions {
                session.happen(event);
            }
        }
        Ok(sessions.len())
    }
}
