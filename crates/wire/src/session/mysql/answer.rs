//! How the answer to a command goes on, packet by packet, and where it ends (MySQL Source Code Documentation, "Command Phase";
//! MariaDB documentation, "Protocol Commands", "Result Set Packets", "Progress Reporting").

use crate::mysql::packet::{ERR, OK, PAYLOAD_MAX, Reader};

/// First byte of an EOF packet, and of the OK packet that stands in its place.
pub(super) const EOF: u8 = 0xfe;
/// First byte of a request for a file of the client, where a result is due ("LOCAL INFILE Request").
pub(super) const LOCAL_FILE: u8 = 0xfb;
/// Error number of a progress report, which is no error and always has another packet behind it.
const PROGRESS: u16 = 0xffff;
/// Shortest OK packet.
const OK_MIN: usize = 7;
/// So much of a payload is looked at: the status flags of an OK packet end here at the latest.
pub(super) const START: usize = 21;
/// Status flags (`SERVER_STATUS_flags_enum` in `mysql_com.h`).
const MORE_RESULTS_EXIST: u16 = 0x0008;
const CURSOR_EXISTS: u16 = 0x0040;
const PS_OUT_PARAMS: u16 = 0x1000;

/// What the answer to a command is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// One packet: OK, EOF or an error.
    Fine,
    /// A text without anything around it.
    Text,
    /// Results, each of them an OK packet, a request for a file, or columns and rows.
    Results,
    /// The number of a statement, and definitions.
    Prepared,
    /// Definitions or rows with nothing in front, up to their end.
    Rows,
    /// Events of a binary log.
    Events,
}

/// Where in an answer the database is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum At {
    Begin,
    /// Another result is due.
    Result,
    /// It has asked for a file.
    File,
    /// So many definitions of columns are due, then their end or rows.
    Columns(usize),
    /// `more`: another result follows.
    Rows {
        more: bool,
    },
    /// So many packets are due.
    Prepared(usize),
    Events,
    Ended,
}

/// Whether a number of columns says if their definitions follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Metadata {
    /// They always do.
    Always,
    /// In front of it (CLIENT_OPTIONAL_RESULTSET_METADATA of MySQL).
    InFront,
    /// Behind it (MARIADB_CLIENT_CACHE_METADATA).
    Behind,
    /// It is not known what was agreed.
    Unknown,
}

/// What capabilities change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rules {
    /// Definitions have no EOF packets behind them.
    pub(super) deprecates_eof: bool,
    pub(super) metadata: Metadata,
    /// There may be reports of progress.
    pub(super) progress: bool,
}

/// The front of a payload, up to [`START`] bytes, and its length.
#[derive(Debug, Clone, Copy)]
pub(super) struct Packet<'b> {
    pub(super) start: &'b [u8],
    pub(super) length: usize,
}

impl Packet<'_> {
    pub(super) fn first(&self) -> Option<u8> {
        self.start.first().copied()
    }

    /// Status flags, if it is an OK packet or one that ends something.
    pub(super) fn status(&self) -> Option<u16> {
        let mut reader = Reader::new(self.start);
        match reader.u8()? {
            EOF if self.length < OK_MIN => reader.u16().and_then(|_warnings| reader.u16()),
            OK | EOF => reader.lenenc().and_then(|_rows| reader.lenenc()).and_then(|_id| reader.u16()),
            _ => None,
        }
    }

    /// The number of an error.
    pub(super) fn error(&self) -> Option<u16> {
        let mut reader = Reader::new(self.start);
        if reader.u8() == Some(ERR) { reader.u16() } else { None }
    }

    /// The number of a statement and those of its columns and parameters whose definitions follow.
    pub(super) fn prepared(&self) -> Option<(u32, [u16; 2])> {
        let mut reader = Reader::new(self.start);
        let (ok, statement) = (reader.u8()?, reader.u32()?);
        let counts = [reader.u16()?, reader.u16()?];
        let (_filler, _warnings, metadata) = (reader.u8()?, reader.u16()?, reader.u8());
        (ok == OK).then_some((statement, if metadata == Some(0) { [0, 0] } else { counts }))
    }

    /// How many definitions a number of columns announces.
    fn definitions(&self, metadata: Metadata) -> Option<usize> {
        let mut reader = Reader::new(self.start);
        let first = reader.lenenc()?;
        let second = if reader.is_empty() { None } else { Some(reader.lenenc()?) };
        if !reader.is_empty() || self.start.len() < self.length {
            return None;
        }
        match (metadata, first, second) {
            (Metadata::Always | Metadata::Unknown, columns, None) => Some(columns),
            (Metadata::InFront | Metadata::Unknown, 0, Some(_)) => Some(0),
            (Metadata::Behind | Metadata::Unknown, _, Some(0)) => Some(0),
            (Metadata::Behind | Metadata::Unknown, columns, Some(1)) => Some(columns),
            (Metadata::InFront | Metadata::Unknown, 1, Some(columns)) => Some(columns),
            _ => None,
        }
    }

    fn is_end(&self) -> bool {
        self.first() == Some(EOF) && self.length < PAYLOAD_MAX
    }

    /// An OK packet would be longer.
    fn is_without_definitions(&self, metadata: Metadata) -> bool {
        matches!(metadata, Metadata::InFront | Metadata::Unknown)
            && (2..OK_MIN).contains(&self.length)
            && self.definitions(metadata) == Some(0)
    }

    /// Where an error has the mark of its SQLSTATE, it has a number of texts.
    fn is_progress(&self) -> bool {
        self.error() == Some(PROGRESS) && self.start.get(3) != Some(&b'#')
    }
}

impl At {
    /// Behind one more packet. `None`: no such answer goes on like this.
    pub(super) fn after(self, kind: Kind, packet: &Packet<'_>, rules: Rules) -> Option<Self> {
        let first = packet.first();
        if rules.progress && packet.is_progress() {
            return Some(self);
        }
        if first == Some(ERR) {
            return Some(Self::Ended);
        }
        let is_due = matches!((self, kind), (Self::Begin | Self::Result, Kind::Fine | Kind::Prepared | Kind::Results));
        if is_due && first == Some(LOCAL_FILE) {
            return Some(Self::File);
        }
        match (self, kind) {
            (Self::Begin, Kind::Fine) => matches!(first, Some(OK | EOF)).then_some(Self::Ended),
            (Self::Begin, Kind::Text) => Some(Self::Ended),
            (Self::Begin, Kind::Prepared) => {
                let (_number, counts) = packet.prepared()?;
                let end = if rules.deprecates_eof { 0 } else { 1 };
                let due = |count: u16| if count > 0 { usize::from(count).saturating_add(end) } else { 0 };
                Some(Self::prepared(counts.into_iter().map(due).fold(0, usize::saturating_add)))
            }
            // Where it is not known that they come, the ends of definitions do not count.
            (Self::Prepared(left), _) if rules.deprecates_eof && packet.is_end() => Some(Self::Prepared(left)),
            (Self::Prepared(left), _) => Some(Self::prepared(left.saturating_sub(1))),
            (Self::Begin | Self::Rows { .. }, Kind::Rows) => {
                Some(if packet.is_end() { Self::Ended } else { Self::Rows { more: false } })
            }
            (Self::Begin | Self::Events, Kind::Events) => match first {
                Some(OK) => Some(Self::Events),
                _ => packet.is_end().then_some(Self::Ended),
            },
            (Self::Begin | Self::Result, _) => match first? {
                OK if packet.is_without_definitions(rules.metadata) => Some(Self::Columns(0)),
                OK | EOF => Self::ended(packet.status()?),
                _ => packet.definitions(rules.metadata).map(Self::Columns),
            },
            (Self::Columns(left @ 1..), _) => Some(Self::Columns(left.saturating_sub(1))),
            (Self::Columns(_), _) if first == Some(EOF) && packet.length < OK_MIN => {
                let status = packet.status()?;
                // The rows of a cursor are fetched later. Those of parameters are followed by another result, also
                // where their own end does not say so.
                let is_cursor = status & CURSOR_EXISTS != 0;
                Some(if is_cursor { Self::Ended } else { Self::Rows { more: status & PS_OUT_PARAMS != 0 } })
            }
            // MySQL 9 does so if a statement whose cursor is open is run without one.
            (Self::Columns(_), _) if !rules.deprecates_eof => (first == Some(OK)).then_some(Self::Ended),
            (Self::Columns(_), _) if packet.is_end() => Self::ended(packet.status()?),
            (Self::Columns(_), _) => Some(Self::Rows { more: false }),
            (Self::Rows { more }, _) if packet.is_end() => {
                if more {
                    Some(Self::Result)
                } else {
                    Self::ended(packet.status()?)
                }
            }
            (Self::Rows { .. }, _) => Some(self),
            (Self::Events | Self::File | Self::Ended, _) => None,
        }
    }

    fn prepared(left: usize) -> Self {
        if left == 0 { Self::Ended } else { Self::Prepared(left) }
    }

    /// Behind a result with these status flags.
    #[expect(clippy::unnecessary_wraps, reason = "as the others")]
    fn ended(status: u16) -> Option<Self> {
        Some(if status & MORE_RESULTS_EXIST == 0 { Self::Ended } else { Self::Result })
    }
}

#[cfg(test)]
mod tests;
