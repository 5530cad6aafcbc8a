//! The relay's HTTP interface, as both ends of the tunnel know it: port, paths, headers, upgrade tokens and JSON.
//! `docs/relay.md` describes it for people, and a snapshot beside this file holds it still.
//!
//! Either end may be older or newer than the other: what is read takes fields that are missing and ignores fields that are
//! unknown, unless it says otherwise, and no field changes its meaning.

pub(crate) mod authorize;
pub(crate) mod targets;

#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

/// The port inside the task, which the Session Manager session is opened to.
pub(crate) const PORT: u16 = 7070;

/// Answers while the runtime does.
#[cfg(feature = "relay")]
pub(crate) const HEALTH: &str = "/healthz";
#[cfg(feature = "relay")]
pub(crate) const METRICS: &str = "/metrics";
/// 200 once every port listens, 503 before and while the relay drains.
pub(crate) const READY: &str = "/readyz";
/// `GET`: [`targets::Relay`].
pub(crate) const TARGETS: &str = "/v1/targets";
/// `GET`: [`authorize::Challenge`]. `POST` of a [`authorize::Claim`]: [`authorize::Granted`].
pub(crate) const AUTHORIZE: &str = "/v1/authorize";
/// `GET` with an [`Upgrade`].
pub(crate) const LANE: &str = "/v1/lane";
/// `POST` without a body, with [`HEADER_LEAVE`]: [`Others`].
pub(crate) const LEAVE: &str = "/v1/leave";

/// The secret number of a link, which only its owner knows: 32 hexadecimal digits.
pub(crate) const HEADER_LINK: &str = "bastion-link";
/// A [`LaneIntent`].
pub(crate) const HEADER_LANE: &str = "bastion-lane";
/// A [`Part`].
pub(crate) const HEADER_LEAVE: &str = "bastion-leave";
/// The name of the target of an upgraded connection.
pub(crate) const HEADER_TARGET: &str = "bastion-target";

/// What a connection to [`LANE`] becomes, by its `Upgrade` header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Upgrade {
    /// One of the byte pipes of a link (`docs/lane-protocol.md`).
    Lane,
    /// One client connection, whose ends are told.
    Connection,
    /// The same for relays and launchers that do not know that.
    ConnectionWithoutEnds,
}

impl Upgrade {
    #[cfg(any(feature = "relay", test))]
    pub(crate) const ALL: [Self; 3] = [Self::Lane, Self::Connection, Self::ConnectionWithoutEnds];

    pub(crate) const fn token(self) -> &'static str {
        match self {
            Self::Lane => "bastion-lane/1",
            Self::Connection => "bastion-conn/2",
            Self::ConnectionWithoutEnds => "bastion-conn/1",
        }
    }
}

/// Whether a lane begins a link or joins one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LaneIntent {
    New,
    Join,
}

impl LaneIntent {
    #[cfg(any(feature = "relay", test))]
    pub(crate) const ALL: [Self; 2] = [Self::New, Self::Join];

    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Join => "join",
        }
    }
}

/// What a launcher has to do with the task that it leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// It has started the task.
    Started,
    Used,
    /// It wants the task to go on.
    Keep,
}

impl Part {
    #[cfg(any(feature = "relay", test))]
    pub(crate) const ALL: [Self; 3] = [Self::Started, Self::Used, Self::Keep];

    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Started => "started",
            Self::Used => "used",
            Self::Keep => "keep",
        }
    }
}

/// Who else uses the task.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Others {
    pub(crate) others: usize,
    /// Whoever started the task has left it to the others.
    pub(crate) last_stops: bool,
}

/// The body of every answer that is a refusal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Refusal {
    /// A sentence for the person.
    pub(crate) error: String,
}
