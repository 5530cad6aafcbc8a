//! What a client has asked of the server that has no answer so far, in its order.

use std::sync::Arc;

use super::effects::{Effects, Names as Forgets};
use super::names::Name;
use crate::session::text::Text;

/// A text that was prepared.
pub(super) struct Known {
    pub(super) text: Arc<Text>,
    pub(super) name: Option<String>,
    pub(super) effects: Effects,
}

/// What a portal runs.
#[derive(Clone)]
pub(super) struct Run {
    pub(super) known: Arc<Known>,
    /// It has a record already.
    pub(super) told: bool,
}

/// A message of the client, or its part that matters here.
pub(super) enum Asked {
    /// `number`: of its record, if it has one.
    Parse {
        number: Option<u64>,
        name: Option<Name>,
        known: Arc<Known>,
    },
    Bind {
        portal: Option<Name>,
        run: Option<Run>,
    },
    CloseStatement {
        name: Option<Name>,
        all: bool,
    },
    ClosePortal {
        portal: Option<Name>,
    },
    Describe,
    /// `number`: of its record, if it does not go on with a portal that has one.
    Execute {
        number: Option<u64>,
        after: Option<Box<After>>,
    },
    Query {
        number: u64,
        after: Option<Box<After>>,
    },
    Function {
        number: u64,
    },
    Sync,
    /// The end of what goes into a COPY. It has no answer, and ends nothing where there is no COPY.
    CopyEnd,
}

/// What a text does to names once it has run.
pub(super) struct After {
    /// A name among them is one that is followed.
    pub(super) statements: Forgets,
    pub(super) portals: bool,
}

impl Asked {
    /// Its answers end with a ReadyForQuery.
    pub(super) fn ends_ready(&self) -> bool {
        matches!(self, Self::Sync | Self::Query { .. } | Self::Function { .. })
    }

    /// What it is called in the protocol.
    pub(super) fn word(&self) -> &'static str {
        match self {
            Self::Parse { .. } => "Parse",
            Self::Bind { .. } => "Bind",
            Self::CloseStatement { .. } | Self::ClosePortal { .. } => "Close",
            Self::Describe => "Describe",
            Self::Execute { .. } => "Execute",
            Self::Query { .. } => "Query",
            Self::Function { .. } => "FunctionCall",
            Self::Sync => "Sync",
            Self::CopyEnd => "CopyDone",
        }
    }
}
