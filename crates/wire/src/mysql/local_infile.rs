//! LOAD DATA LOCAL: the statement with which a client lets the database ask for a file of its own, and the file on its way.
//!
//! A database answers any statement with such a request if it likes, and some clients send whatever file it names
//! ("Protocol::LOCAL_INFILE_Request"). So it passes only behind a statement of the client that loads this very file. The
//! file comes in packets that begin no command, the last of them empty.

/// Longest statement that is looked at; one that loads a file is short.
pub const STATEMENT_MAX: usize = 64 * 1024;

/// A file that a client has sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SentFile {
    pub name: String,
    pub bytes: u64,
    /// Its last packet has come.
    pub complete: bool,
}

/// See the module.
#[derive(Debug, Clone, Default)]
pub struct LocalFiles {
    /// The last command, if it is a statement and nothing else waits for an answer.
    statement: Option<Vec<u8>>,
    sending: Option<SentFile>,
    sent: Vec<SentFile>,
}

impl LocalFiles {
    /// A command begins.
    pub fn begin(&mut self, is_statement: bool) {
        self.statement = is_statement.then(Vec::new);
    }

    /// Part of the last command.
    pub fn pass(&mut self, bytes: &[u8]) {
        if let Some(statement) = &mut self.statement {
            match statement.len().saturating_add(bytes.len()) <= STATEMENT_MAX {
                true => statement.extend_from_slice(bytes),
                false => self.statement = None,
            }
        }
    }

    /// Whether the database may have the file `name` for the last statement; then it is on its way.
    pub fn grant(&mut self, name: &[u8]) -> bool {
        let loads = self.sending.is_none() && self.statement.as_ref().is_some_and(|statement| loads(statement, name));
        if loads {
            let name = String::from_utf8_lossy(name).into_owned();
            self.sending = Some(SentFile { name, bytes: 0, complete: false });
        }
        loads
    }

    pub fn is_sending(&self) -> bool {
        self.sending.is_some()
    }

    /// A packet of the file, with so many bytes; `continued` if it belongs to the one before.
    pub fn packet(&mut self, length: usize, continued: bool) {
        let Some(file) = &mut self.sending else { return };
        file.bytes = file.bytes.saturating_add(u64::try_from(length).unwrap_or(u64::MAX));
        if length == 0 && !continued {
            file.complete = true;
            self.sent.extend(self.sending.take());
        }
    }

    /// The files that have been sent since this was asked.
    pub fn take_sent(&mut self) -> Vec<SentFile> {
        std::mem::take(&mut self.sent)
    }

    /// The file that is on its way still, at the end of the connection.
    pub fn take_unfinished(&mut self) -> Option<SentFile> {
        self.sending.take()
    }
}

/// Whether `statement` says LOAD … LOCAL INFILE and names this file. Escapes and quotes are left out on both sides.
fn loads(statement: &[u8], name: &[u8]) -> bool {
    let plain = |text: &[u8]| -> Vec<u8> {
        text.iter().copied().filter(|byte| !matches!(byte, b'\\' | b'\'' | b'"')).collect()
    };
    let (statement, name) = (plain(statement), plain(name));
    let upper = statement.to_ascii_uppercase();
    let mut rest = upper.as_slice();
    for word in [&b"LOAD"[..], b"LOCAL", b"INFILE"] {
        let Some(at) = find(rest, word) else { return false };
        rest = rest.get(at.saturating_add(word.len())..).unwrap_or_default();
    }
    // In the letters of the statement, behind the words.
    let behind = statement.get(statement.len().saturating_sub(rest.len())..).unwrap_or_default();
    !name.is_empty() && find(behind, &name).is_some()
}

fn find(text: &[u8], wanted: &[u8]) -> Option<usize> {
    text.windows(wanted.len()).position(|window| window == wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grants(statement: &[u8], name: &[u8]) -> bool {
        let mut files = LocalFiles::default();
        files.begin(true);
        statement.chunks(3).for_each(|part| files.pass(part));
        files.grant(name)
    }

    #[test]
    fn only_the_file_of_the_clients_own_statement_is_granted() {
        for (statement, name) in [
            (&b"load data local infile '/tmp/rows.csv' into table t"[..], &b"/tmp/rows.csv"[..]),
            (b"LOAD DATA LOW_PRIORITY LOCAL INFILE \"rows.csv\" INTO TABLE t", b"rows.csv"),
            (b"/* a */ load xml concurrent local infile 'it''s.xml' into table t", b"it's.xml"),
            (b"load data local infile 'C:\\\\data\\\\rows.csv' into table t", b"C:\\data\\rows.csv"),
            (b"set @a = 1; load data local infile '\xe7\x89\x87.csv' into table t", b"\xe7\x89\x87.csv"),
        ] {
            assert!(grants(statement, name), "{}", String::from_utf8_lossy(statement));
            for other in [&b"/etc/passwd"[..], b""] {
                assert!(!grants(statement, other), "{}", String::from_utf8_lossy(statement));
            }
        }
        for statement in [
            &b"select 1"[..],
            b"select '/etc/passwd'",
            b"load data infile '/etc/passwd' into table t",
            // Before the words, and not behind them.
            b"select '/etc/passwd'; load data local infile 'rows.csv' into table t",
        ] {
            assert!(!grants(statement, b"/etc/passwd"), "{}", String::from_utf8_lossy(statement));
        }
        let mut long = b"load data local infile 'rows.csv' into table t -- ".to_vec();
        long.resize(STATEMENT_MAX + 1, b'x');
        assert!(!grants(&long, b"rows.csv") && grants(&long[..STATEMENT_MAX], b"rows.csv"));
        // Another command, which is no statement.
        assert!(!LocalFiles::default().grant(b"rows.csv"));
    }

    #[test]
    fn a_file_is_counted_up_to_its_empty_packet() {
        let mut files = LocalFiles::default();
        files.begin(true);
        files.pass(b"load data local infile 'rows.csv' into table t");
        assert!(files.grant(b"rows.csv") && !files.grant(b"rows.csv"));
        files.packet(7, false);
        files.packet(0, true);
        assert!(files.is_sending() && files.take_sent().is_empty());
        files.packet(0, false);
        let sent = SentFile { name: "rows.csv".to_owned(), bytes: 7, complete: true };
        assert_eq!((files.is_sending(), files.take_sent()), (false, vec![sent]));
        // The same statement may name another, and the connection may end before that has come.
        assert!(files.grant(b"rows.csv"));
        files.packet(3, false);
        let unfinished = SentFile { name: "rows.csv".to_owned(), bytes: 3, complete: false };
        assert_eq!(files.take_unfinished(), Some(unfinished));
    }
}
