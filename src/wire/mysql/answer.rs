//! Where an answer of the database stands, packet by packet: what is due next, and whether it has ended.
//!
//! The commands are not known here, so a packet is told by its start (MySQL Source Code Documentation, "Command Phase"). Two
//! kinds need care. The answer to COM_STMT_PREPARE begins like an OK packet ("COM_STMT_PREPARE Response") and has definitions
//! behind it. The one to COM_STATISTICS is a text and nothing else. Between the others come the progress reports of
//! MariaDB (MariaDB documentation, "Progress Reporting"), which look like errors and end nothing; and a binary log is sent as
//! events that look like OK packets ("COM_BINLOG_DUMP").

use super::packet::{ERR, OK, PAYLOAD_MAX, Reader};

/// First byte of an EOF packet, of the OK packet that stands in its place, and of a request to switch the plugin.
const EOF: u8 = 0xfe;
/// First byte of a request for a file of the client, where a result is due ("LOCAL INFILE Request").
pub const LOCAL_FILE: u8 = 0xfb;
/// Error number of a progress report, which is no error and always has another packet behind it.
const PROGRESS: u16 = 0xffff;
/// Shortest OK packet: affected rows and a number of one byte each, status, warnings.
const OK_LENGTH: usize = 7;
/// The head of a binary log's event, and the byte before it that marks a good packet ("Binary Log Event Header").
const EVENT_LENGTH: usize = 20;
/// First of two bytes before an event for a replica that acknowledges events ("Semi-Synchronous Replication").
const SEMI_SYNC: u8 = 0xef;
/// First byte of a definition: the length of its catalog, which is always "def".
const DEFINITION: u8 = 3;
/// Payload of an EOF packet; where CLIENT_DEPRECATE_EOF holds, the OK packet in its place is longer.
const EOF_LENGTH: usize = 5;
/// Longest number of columns, with the flag of CLIENT_OPTIONAL_RESULTSET_METADATA.
const COUNT_LENGTH: usize = 10;
/// So much of a payload is looked at: the status flags of an OK packet end here at the latest.
const START: usize = 21;
/// Status flags (`SERVER_STATUS_flags_enum` in `mysql_com.h`).
const MORE_RESULTS_EXIST: u16 = 0x0008;
const CURSOR_EXISTS: u16 = 0x0040;

/// The start of a payload, and its length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Start {
    bytes: [u8; START],
    length: usize,
}

impl Start {
    /// Of a payload of this length, of which nothing has come yet.
    pub fn new(length: usize) -> Self {
        Self { bytes: [0; START], length }
    }

    pub fn length(&self) -> usize {
        self.length
    }

    /// What has come of the payload, `missing` bytes before its end.
    pub fn pass(&mut self, missing: usize, bytes: &[u8]) {
        let into = self.bytes.get_mut(self.length.saturating_sub(missing)..).unwrap_or_default();
        for (into, byte) in into.iter_mut().zip(bytes) {
            *into = *byte;
        }
    }

    fn payload(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or(&self.bytes)
    }

    pub fn first(&self) -> Option<u8> {
        self.payload().first().copied()
    }

    /// Status flags of an EOF packet or an OK packet.
    fn status(&self) -> u16 {
        let mut reader = Reader::new(self.payload());
        let _first = reader.u8();
        let status = match self.length {
            EOF_LENGTH => reader.u16().and_then(|_warnings| reader.u16()),
            _ => reader.lenenc().and_then(|_rows| reader.lenenc()).and_then(|_id| reader.u16()),
        };
        status.unwrap_or_default()
    }

    /// Numbers of columns and of parameters, if it is the first packet of an answer to COM_STMT_PREPARE. An OK packet of
    /// the same length has numbers above 65535, or a text, where the high byte of the statement's number and the filler are.
    fn prepared(&self) -> Option<(u16, u16)> {
        let mut reader = Reader::new(self.payload());
        let (ok, statement) = (reader.u8()?, reader.u32()?);
        let counts = (reader.u16()?, reader.u16()?);
        let (filler, _warnings, metadata) = (reader.u8()?, reader.u16()?, reader.u8());
        let fits = self.length == 12 || self.length == 13 && metadata.is_some_and(|metadata| metadata < 2);
        let is_prepared = ok == OK && fits && statement > 0 && statement < 1 << 24 && filler == 0;
        is_prepared.then_some(if metadata == Some(0) { (0, 0) } else { counts })
    }

    /// How many definitions follow a number of columns. A second number says whether they come at all: behind the columns
    /// in MariaDB (MARIADB_CLIENT_CACHE_METADATA), before them in MySQL (CLIENT_OPTIONAL_RESULTSET_METADATA), where a 0 begins
    /// the packet like an OK packet.
    fn definitions(&self) -> Option<usize> {
        let mut reader = Reader::new(self.payload());
        let first = reader.lenenc()?;
        let second = if reader.is_empty() { None } else { Some(reader.lenenc()?) };
        if !reader.is_empty() || self.length > START {
            return None;
        }
        match (first, second) {
            (0, Some(_)) | (_, Some(0)) => Some(0),
            (columns, None | Some(1)) | (1, Some(columns)) => Some(columns),
            _ => None,
        }
    }

    /// The first packet of a MySQL result whose definitions are left out; an OK packet is longer.
    fn is_without_definitions(&self) -> bool {
        self.length > 1 && self.length < OK_LENGTH && self.definitions() == Some(0)
    }

    fn is_progress(&self) -> bool {
        let mut reader = Reader::new(self.payload());
        reader.u8() == Some(ERR) && reader.u16() == Some(PROGRESS)
    }

    /// An event of a binary log has its own length in it.
    fn is_event(&self) -> bool {
        let mut reader = Reader::new(self.payload());
        let mark = match self.payload() {
            [OK, SEMI_SYNC, 0 | 1, ..] => 3,
            _ => 1,
        };
        // Time, type and server come before the length.
        let length = reader.take(mark).and_then(|_mark| reader.take(9)).and_then(|_before| reader.u32());
        self.length >= EVENT_LENGTH
            && length.and_then(|length| usize::try_from(length).ok()) == Some(self.length.saturating_sub(mark))
    }

    /// A request to go on with another plugin: its name follows. Behind the byte of an EOF packet are numbers, mostly 0.
    fn is_switch(&self) -> bool {
        self.length > EOF_LENGTH && self.payload().get(1).is_some_and(u8::is_ascii_alphabetic)
    }
}

/// What is due of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// Nothing.
    Ended,
    /// Another result.
    Result,
    /// So many definitions of columns, then rows.
    Columns(usize),
    /// Definitions of a prepared statement, and EOF packets behind them.
    Prepared { definitions: usize, ends: u8 },
    /// Rows, up to an EOF packet or an error.
    Rows,
    /// Events of a binary log, up to an EOF packet or an error.
    Events,
    /// The client proves once more who it is: the exchange of a login.
    Login,
}

impl Answer {
    /// After one more packet. `first` is whether it begins the answer; with `deprecates_eof`, definitions end without an EOF
    /// packet, or with one that comes as a surprise.
    #[must_use]
    pub fn after(self, packet: &Start, first: bool, deprecates_eof: bool) -> Self {
        match self {
            // What it is about is still to come.
            Self::Ended | Self::Result if packet.is_progress() => Self::Result,
            _ if packet.is_progress() => self,
            Self::Ended | Self::Result | Self::Login => Self::begun(packet, first, deprecates_eof),
            Self::Events => match Self::in_rows(packet) {
                Self::Rows => Self::Events,
                ended => ended,
            },
            Self::Columns(0) if packet.first() == Some(EOF) && packet.length == EOF_LENGTH => {
                // The rows of a cursor are fetched later.
                if packet.status() & CURSOR_EXISTS == 0 { Self::Rows } else { Self::Ended }
            }
            Self::Columns(left) if left > 0 && packet.first() == Some(DEFINITION) => {
                Self::Columns(left.saturating_sub(1))
            }
            Self::Columns(_) | Self::Rows => Self::in_rows(packet),
            Self::Prepared { definitions, ends } => match packet.first() {
                Some(ERR) => Self::Ended,
                Some(EOF) => Self::prepared(definitions, ends.saturating_sub(1)),
                _ => Self::prepared(definitions.saturating_sub(1), ends),
            },
        }
    }

    fn begun(packet: &Start, first: bool, deprecates_eof: bool) -> Self {
        match packet.first() {
            Some(ERR) => Self::Ended,
            Some(OK) if first && packet.is_event() => Self::Events,
            Some(OK) if first && packet.is_without_definitions() => Self::Columns(0),
            Some(OK) => match packet.prepared().filter(|_| first) {
                Some((columns, parameters)) => {
                    let ends =
                        if deprecates_eof { 0 } else { u8::from(columns > 0).saturating_add(u8::from(parameters > 0)) };
                    Self::prepared(usize::from(columns).saturating_add(usize::from(parameters)), ends)
                }
                None => Self::ended(packet.status()),
            },
            Some(EOF) if first && packet.is_switch() => Self::Login,
            Some(EOF) => Self::in_rows(packet),
            Some(LOCAL_FILE) => Self::Result,
            Some(text) if first && text.is_ascii_graphic() && packet.length > COUNT_LENGTH => Self::Ended,
            _ => packet.definitions().map_or(Self::Rows, Self::Columns),
        }
    }

    fn prepared(definitions: usize, ends: u8) -> Self {
        if definitions == 0 && ends == 0 { Self::Ended } else { Self::Prepared { definitions, ends } }
    }

    fn in_rows(packet: &Start) -> Self {
        match packet.first() {
            Some(ERR) => Self::Ended,
            // A text of this first byte would be longer than a packet can be.
            Some(EOF) if packet.length < PAYLOAD_MAX => Self::ended(packet.status()),
            _ => Self::Rows,
        }
    }

    /// Whether a result is due, so that the database may ask for a file instead.
    pub fn is_due(self) -> bool {
        matches!(self, Self::Ended | Self::Result | Self::Login)
    }

    /// Behind a result with these status flags.
    fn ended(status: u16) -> Self {
        if status & MORE_RESULTS_EXIST == 0 { Self::Ended } else { Self::Result }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FINE: &[u8] = &[OK, 0, 0, 2, 0, 0, 0];
    const END: &[u8] = &[EOF, 0, 0, 2, 0];
    const END_AS_OK: &[u8] = &[EOF, 0, 0, 2, 0, 0, 0];
    const COLUMN: &[u8] = b"\x03def\x00\x00\x00";
    const ROW: &[u8] = b"\x011";
    const PROGRESS_REPORT: &[u8] = b"\xff\xff\xff\x01\x01\x02\x10\x27\x00\x0acopy to tmp";

    /// What is due after each of these packets.
    fn due(payloads: &[&[u8]], deprecates_eof: bool) -> Vec<Answer> {
        let mut answer = Answer::Ended;
        let follow = |(number, payload): (usize, &&[u8])| {
            let mut start = Start::new(payload.len());
            start.pass(payload.len(), payload);
            answer = answer.after(&start, number == 0, deprecates_eof);
            answer
        };
        payloads.iter().enumerate().map(follow).collect()
    }

    /// Whether these packets are one whole answer, which ends with the last of them and not before.
    fn is_whole(payloads: &[&[u8]], deprecates_eof: bool) -> bool {
        let ends: Vec<bool> = due(payloads, deprecates_eof).iter().map(|due| *due == Answer::Ended).collect();
        let expected: Vec<bool> = (1..=payloads.len()).map(|number| number == payloads.len()).collect();
        ends == expected
    }

    /// One of a binary log, with so many bytes behind the mark.
    fn event(length: u8) -> Vec<u8> {
        let mut event = vec![0; usize::from(length) + 1];
        event[10] = length;
        event
    }

    fn prepared(columns: u8, parameters: u8) -> [u8; 12] {
        [OK, 7, 0, 0, 0, columns, 0, parameters, 0, 0, 0, 0]
    }

    #[test]
    fn answers_end_with_their_last_packet() {
        let more = [EOF, 0, 0, 10, 0];
        let more_as_ok = [EOF, 0, 0, 10, 0, 0, 0];
        let statistics = &b"Uptime: 7  Threads: 1"[..];
        for whole in [
            &[FINE][..],
            &[b"\xff\x15\x04#28000no"],
            &[statistics],
            &[END],
            &[&[1], COLUMN, END, ROW, END],
            &[&[2], COLUMN, COLUMN, END, END],
            &[&[1], COLUMN, END, ROW, b"\xff\x15\x04#28000no"],
            // A procedure, or several statements.
            &[&[1], COLUMN, END, ROW, &more, FINE],
            &[&[OK, 0, 0, 10, 0, 0, 0], &[1], COLUMN, END, ROW, END],
            // The fields of a table.
            &[b"\x03def\x00\x01\x00a\x00\x00\x00", b"\x03def\x00\x01\x00a\x00\x00\x00", END],
            // A cursor.
            &[&[1], COLUMN, &[EOF, 0, 0, 0x42, 0]],
            &[&prepared(0, 0)],
            &[&prepared(2, 0), COLUMN, COLUMN, END],
            &[&prepared(1, 2), COLUMN, COLUMN, END, COLUMN, END],
            // Reports of the progress of a long statement, before its answer and among rows.
            &[PROGRESS_REPORT, PROGRESS_REPORT, FINE],
            &[PROGRESS_REPORT, b"\xff\x15\x04#28000no"],
            &[PROGRESS_REPORT, &[1], COLUMN, PROGRESS_REPORT, END, ROW, PROGRESS_REPORT, END],
            // Definitions that the client has already: MariaDB, MySQL.
            &[&[1, 0], END, ROW, END],
            &[&[0, 1], END, ROW, END],
            &[&[1, 1], COLUMN, END, ROW, END],
            &[&[1, 2], COLUMN, COLUMN, END, ROW, END],
            // A file, and what became of it.
            &[b"\xfb/tmp/rows.csv", FINE],
            // A binary log.
            &[&event(20), &event(40), &event(20), END],
            &[&event(20), b"\xff\xd4\x04#HY000binary log is over"],
        ] {
            assert!(is_whole(whole, false), "{whole:?} {:?}", due(whole, false));
        }
        for whole in [
            &[FINE][..],
            &[&[1], COLUMN, ROW, END_AS_OK],
            &[&[1], COLUMN, END_AS_OK],
            &[&[1], COLUMN, ROW, &more_as_ok, FINE],
            &[&[1], COLUMN, &[EOF, 0, 0, 0x42, 0, 0, 0]],
            &[&prepared(2, 0), COLUMN, COLUMN],
            &[&prepared(1, 2), COLUMN, COLUMN, COLUMN],
            &[PROGRESS_REPORT, &[1], COLUMN, PROGRESS_REPORT, ROW, END_AS_OK],
            &[&[1, 0], ROW, END_AS_OK],
            &[&[0, 1], ROW, ROW, END_AS_OK],
        ] {
            assert!(is_whole(whole, true), "{whole:?} {:?}", due(whole, true));
        }
        // Where it is not known whether definitions have EOF packets, the last of those changes nothing.
        let both = due(&[&prepared(1, 1), COLUMN, END, COLUMN, END], true);
        assert_eq!(both[3..], [Answer::Ended, Answer::Ended]);
    }

    #[test]
    fn an_ok_packet_as_long_as_that_of_a_prepared_statement_is_none() {
        for fine in [
            // 300 rows and the number 70000; the other way round; a text.
            &[OK, 0xfc, 0x2c, 1, 0xfd, 0x70, 0x11, 1, 2, 0, 0, 0],
            &[OK, 0xfd, 0x70, 0x11, 1, 0xfc, 0x2c, 1, 2, 0, 0, 0],
            b"\x00\x01\x00\x02\x00\x00\x00\x04done",
        ] {
            assert_eq!(due(&[fine], true), [Answer::Ended], "{fine:?}");
        }
    }

    #[test]
    fn a_request_for_another_plugin_is_told_from_the_end_of_an_answer() {
        assert_eq!(due(&[b"\xfemysql_native_password\0"], true), [Answer::Login]);
        assert_eq!(due(&[END_AS_OK], true), [Answer::Ended]);
    }
}
