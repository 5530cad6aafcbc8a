//! The blanks and comments in front of a text, off bytes that come in pieces (PostgreSQL manual, "Lexical Structure"; MySQL
//! manual, "Comments"; MariaDB documentation, "Comment Syntax").
//!
//! Comments of MySQL that a server may run, `/*! … */` and MariaDB's `/*M! … */`, are no comments here.

use crate::redact::Dialect;

/// Where in front of the text the bytes are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Front {
    #[default]
    Blank,
    Dash,
    /// `--` in MySQL, which begins a comment only before a blank.
    Dashes,
    Line,
    Slash,
    /// `/*` in MySQL.
    Opened,
    /// `/*M` in MySQL.
    OpenedM,
    /// How deep, and the byte before unless it belongs to a mark.
    Block(u32, u8),
    /// It is over.
    Text,
}

impl Front {
    /// What of `bytes` belongs to the text. What was taken for the start of a comment before goes to `kept` if it is none.
    pub(super) fn skip<'b>(&mut self, bytes: &'b [u8], dialect: Dialect, kept: &mut Vec<u8>) -> &'b [u8] {
        for (at, byte) in bytes.iter().enumerate() {
            if *self == Self::Text {
                return bytes.get(at..).unwrap_or_default();
            }
            let before = *self;
            *self = before.next(*byte, dialect);
            if *self == Self::Text {
                kept.extend_from_slice(before.pending());
                return bytes.get(at..).unwrap_or_default();
            }
        }
        if *self == Self::Text { bytes } else { &[] }
    }

    /// The end of the text.
    pub(super) fn end(self, kept: &mut Vec<u8>) {
        // Nothing behind two dashes is as good as a blank; a comment without its end is a comment.
        if matches!(self, Self::Dash | Self::Slash) {
            kept.extend_from_slice(self.pending());
        }
    }

    fn next(self, byte: u8, dialect: Dialect) -> Self {
        let mysql = dialect == Dialect::Mysql;
        match (self, byte) {
            (Self::Blank, b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c) => Self::Blank,
            (Self::Blank, b'-') => Self::Dash,
            (Self::Blank, b'/') => Self::Slash,
            (Self::Blank, b'#') if mysql => Self::Line,
            (Self::Dash, b'-') if mysql => Self::Dashes,
            (Self::Dash, b'-') => Self::Line,
            (Self::Dashes | Self::Line, b'\n') => Self::Blank,
            (Self::Line, b'\r') if !mysql => Self::Blank,
            // MySQL ends such a comment there.
            (Self::Dashes | Self::Line, 0) if mysql => Self::Text,
            (Self::Dashes, 1..=b' ' | 0x7f) | (Self::Line, _) => Self::Line,
            (Self::Slash, b'*') if mysql => Self::Opened,
            (Self::Slash, b'*') => Self::Block(1, 0),
            (Self::Opened | Self::OpenedM, b'!') => Self::Text,
            (Self::Opened, b'M') => Self::OpenedM,
            (Self::Opened | Self::OpenedM, _) => Self::Block(1, 0).next(byte, dialect),
            (Self::Block(1, b'*'), b'/') => Self::Blank,
            (Self::Block(depth, b'*'), b'/') => Self::Block(depth.saturating_sub(1), 0),
            (Self::Block(depth, b'/'), b'*') if !mysql => Self::Block(depth.saturating_add(1), 0),
            (Self::Block(depth, _), byte) => Self::Block(depth, byte),
            (Self::Blank | Self::Dash | Self::Dashes | Self::Slash | Self::Text, _) => Self::Text,
        }
    }

    /// What was read and is text if no comment follows.
    fn pending(self) -> &'static [u8] {
        match self {
            Self::Dash => b"-",
            Self::Dashes => b"--",
            Self::Slash => b"/",
            Self::Opened => b"/*",
            Self::OpenedM => b"/*M",
            Self::Blank | Self::Line | Self::Block(..) | Self::Text => b"",
        }
    }
}
