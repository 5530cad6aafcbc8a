//! A server of MySQL or MariaDB as its `dispatch_command` is (`sql/sql_parse.cc`, `sql/sql_prepare.cc`): what it runs of the
//! packets that come to it, and what it answers. It fails where it is told to.

mod answers;

use std::collections::{BTreeMap, HashMap, VecDeque};

use super::sql::{Sql, run_of};

/// What the login has agreed on, and whose server it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Agreed {
    pub(super) is_mariadb: bool,
    pub(super) deprecates_eof: bool,
    /// Definitions may be left out: MARIADB_CLIENT_CACHE_METADATA, or CLIENT_OPTIONAL_RESULTSET_METADATA.
    pub(super) optional_metadata: bool,
    pub(super) files: bool,
    /// Of MariaDB: progress reports, and bulk execution.
    pub(super) progress: bool,
    pub(super) bulk: bool,
}

/// What came of a command at the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Came {
    /// It was not read.
    Unread,
    /// There is nothing to run, or it is no SQL.
    Done,
    /// A text has run, whatever came of it.
    Ran(String),
    /// It was refused before anything ran, for there is no such statement or command.
    Refused,
    /// It was refused before this text ran.
    Invalid(String),
}

/// Where a command fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    No,
    /// With its first packet.
    First,
    /// In the middle of its answer.
    Later,
    /// The server goes away in the middle of its answer, with an error or without a word.
    Dies,
    DiesSilently,
    /// It asks for a file that no statement of the client names.
    AsksForFile,
}

/// A packet of the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Packet {
    pub(super) sequence: u8,
    pub(super) payload: Vec<u8>,
    /// The answer to this command ends with it.
    pub(super) ends: Option<usize>,
    /// It asks for a file.
    pub(super) asks: bool,
    /// The number of a statement that it gives.
    pub(super) gives: Option<u32>,
}

#[derive(Debug, Clone)]
struct Prepared {
    sql: Sql,
    text: String,
    /// Rows that a cursor has still.
    cursor: Option<usize>,
    /// It was given long data for a parameter that it has not.
    broken: bool,
}

/// A file that is being sent, and what runs behind it.
struct Loading {
    command: usize,
    refused: bool,
    rest: VecDeque<Sql>,
    number: usize,
}

pub(super) struct Server {
    agreed: Agreed,
    statements: BTreeMap<u32, Prepared>,
    /// Of SQL's PREPARE.
    named: BTreeMap<u8, Sql>,
    last: Option<u32>,
    counter: u32,
    /// Texts as they come, and what they are.
    pub(super) texts: HashMap<String, (Vec<Sql>, usize)>,
    /// Commands that have gone on whole, and how they fail.
    pub(super) queue: VecDeque<(usize, Fault)>,
    pub(super) from_client: VecDeque<u8>,
    loading: Option<Loading>,
    pub(super) is_dead: bool,
    pub(super) out: Vec<Packet>,
    pub(super) came: HashMap<usize, Came>,
    /// Of the next packet.
    sequence: u8,
}

const MORE: u16 = 0x0008;
const CURSOR: u16 = 0x0040;
const LAST_ROW: u16 = 0x0080;
const OUT_PARAMETERS: u16 = 0x1000;
const LAST: u32 = u32::MAX;

/// The answer has an error in it.
struct Failed;

impl Server {
    pub(super) fn new(agreed: Agreed, counter: u32) -> Self {
        Self {
            agreed,
            statements: BTreeMap::new(),
            named: BTreeMap::new(),
            last: None,
            counter,
            texts: HashMap::new(),
            queue: VecDeque::new(),
            from_client: VecDeque::new(),
            loading: None,
            is_dead: false,
            out: Vec::new(),
            came: HashMap::new(),
            sequence: 1,
        }
    }

    /// The number that the next statement will have.
    pub(super) fn next_number(&self) -> u32 {
        self.counter + 1
    }

    pub(super) fn is_loading(&self) -> bool {
        self.loading.is_some()
    }

    /// The session starts anew, and goes on counting.
    pub(super) fn reset(&mut self) {
        self.statements.clear();
        self.named.clear();
        self.last = None;
    }

    /// Says the last thing, unasked.
    pub(super) fn die(&mut self, sequence: u8) {
        if !self.is_dead {
            self.sequence = sequence;
            self.error(4031, "The client was disconnected by the server");
            self.is_dead = true;
        }
    }

    /// What the server reads next: true if there was a whole packet of it.
    pub(super) fn handle(&mut self) -> bool {
        if self.is_dead {
            return false;
        }
        let is_file = self.loading.is_some();
        let Some((sequence, payload, used)) = self.packet() else { return false };
        self.from_client.drain(..used);
        let wanted = if is_file { self.sequence } else { 0 };
        if sequence.0 != wanted {
            let number = if is_file { self.sequence } else { 0 };
            if is_file {
                self.queue.pop_front();
            }
            self.die(number);
            return true;
        }
        self.sequence = sequence.1.wrapping_add(1);
        match self.loading.is_some() {
            true => self.file(&payload),
            false => {
                let Some((command, fault)) = self.queue.pop_front() else { panic!("a command that was not forwarded") };
                let before = self.out.len();
                let came = self.command(command, &payload, fault);
                self.came.insert(command, came);
                if fault == Fault::Dies && self.is_dead && self.out.len() == before {
                    self.error(1053, "Server shutdown in progress");
                }
                self.finish(command);
            }
        }
        true
    }

    /// The next payload, its first and last number, and what it takes.
    fn packet(&self) -> Option<((u8, u8), Vec<u8>, usize)> {
        let bytes: Vec<u8> = self.from_client.iter().take(4).copied().collect();
        let &[a, b, c, first] = bytes.first_chunk()?;
        let mut length = usize::from(a) | usize::from(b) << 8 | usize::from(c) << 16;
        let (mut payload, mut at, mut last) = (Vec::new(), 4, first);
        loop {
            if self.from_client.len() < at + length {
                return None;
            }
            payload.extend(self.from_client.range(at..at + length));
            at += length;
            if length < 0xff_ff_ff {
                return Some(((first, last), payload, at));
            }
            let head: Vec<u8> = self.from_client.range(at..).take(4).copied().collect();
            let &[a, b, c, number] = head.first_chunk()?;
            (length, last) = (usize::from(a) | usize::from(b) << 8 | usize::from(c) << 16, number);
            at += 4;
        }
    }

    /// Marks the end of the answer, if it is all there.
    fn finish(&mut self, command: usize) {
        if self.loading.is_none()
            && !self.is_dead
            && let Some(last) = self.out.last_mut()
            && last.ends.is_none()
        {
            last.ends = Some(command);
        }
    }

    fn refuse(&mut self, number: u16, text: &str) -> Came {
        self.error(number, text);
        Came::Refused
    }

    fn fine_or_not(&mut self, fault: Fault) -> Came {
        match fault {
            Fault::First | Fault::Later => self.refuse(1049, "Unknown database"),
            Fault::Dies | Fault::DiesSilently => {
                self.is_dead = true;
                Came::Done
            }
            Fault::No | Fault::AsksForFile => {
                self.fine(0, "");
                Came::Done
            }
        }
    }

    fn command(&mut self, command: usize, payload: &[u8], fault: Fault) -> Came {
        let Some((&code, body)) = payload.split_first() else { return self.unknown() };
        let number = body.first_chunk().map(|bytes| u32::from_le_bytes(*bytes));
        let is_mariadb = self.agreed.is_mariadb;
        match code {
            0x01 => {
                self.is_dead = true;
                Came::Done
            }
            0x02 | 0x0e => self.fine_or_not(fault),
            0x03 => self.query(command, body, fault),
            0x04 => {
                if fault != Fault::No {
                    return self.refuse(1146, "no such table");
                }
                self.definitions(body.len() % 3, None);
                self.end(0);
                Came::Done
            }
            0x09 => {
                self.send(b"Uptime: 66  Threads: 1  Questions: 40  Slow queries: 0".to_vec());
                Came::Done
            }
            0x0a if is_mariadb => {
                let _shown = self.result(&Sql::Select { columns: 9, rows: 1 }, false, Fault::No, 0);
                Came::Done
            }
            0x0c if is_mariadb => self.fine_or_not(fault),
            0x0d | 0x1b => {
                match fault {
                    Fault::No => self.end(0),
                    _ => return self.fine_or_not(fault),
                }
                Came::Done
            }
            0x12 => {
                for _ in 0..2 {
                    let mut event = [7; 21];
                    event[0] = 0;
                    event[10..14].copy_from_slice(b"\x14\0\0\0");
                    self.send(event.to_vec());
                }
                self.error(1236, "the binary log is over");
                self.is_dead = true;
                Came::Done
            }
            0x16 => self.prepare(body, fault),
            0x17 if body.len() < 9 => self.malformed(),
            0x17 => self.execute(number.unwrap(), body[4], &body[9..], fault),
            0x18 => {
                match number {
                    Some(number) if body.len() >= 6 => self.long_data(number, u16::from_le_bytes([body[4], body[5]])),
                    _ if is_mariadb => {}
                    _ => return self.malformed(),
                }
                Came::Done
            }
            0x19 => {
                match number {
                    Some(number) => self.close(number),
                    None if is_mariadb => {}
                    None => return self.malformed(),
                }
                Came::Done
            }
            0x1a => match number {
                Some(number) => self.reset_statement(number),
                None => self.malformed(),
            },
            0x1c if body.len() < 8 => self.malformed(),
            0x1c => self.fetch(number.unwrap(), usize::from(body[4]), fault),
            0x1f => {
                self.reset();
                self.fine(0, "");
                Came::Done
            }
            0xfa if is_mariadb => self.bulk(body, fault),
            _ => self.unknown(),
        }
    }

    fn unknown(&mut self) -> Came {
        self.refuse(1047, "Unknown command")
    }

    fn malformed(&mut self) -> Came {
        self.refuse(1835, "Malformed communication packet")
    }

    fn unknown_number(&mut self, number: u32) -> Came {
        self.refuse(1243, &format!("Unknown prepared statement handler ({number}) given to mysqld_stmt_execute"))
    }

    fn find(&self, number: u32) -> Option<u32> {
        let number = if number == LAST && self.agreed.is_mariadb { self.last? } else { number };
        self.statements.contains_key(&number).then_some(number)
    }

    fn query(&mut self, command: usize, body: &[u8], fault: Fault) -> Came {
        let text = String::from_utf8(body.to_vec()).unwrap();
        if fault == Fault::AsksForFile {
            self.ask("/etc/passwd");
            return Came::Ran(text);
        }
        let (sqls, number) = self.texts.get(&text).cloned().unwrap_or_default();
        self.statements(command, sqls.into(), number, fault);
        Came::Ran(text)
    }

    fn ask(&mut self, name: &str) {
        self.send([b"\xfb", name.as_bytes()].concat());
        self.out.last_mut().unwrap().asks = true;
    }

    /// The statements of a query, up to one that loads a file.
    fn statements(&mut self, command: usize, mut sqls: VecDeque<Sql>, number: usize, fault: Fault) {
        while let Some(sql) = sqls.pop_front() {
            let status = if sqls.is_empty() { 0 } else { MORE };
            if sql == Sql::Load && self.agreed.files && fault == Fault::No {
                self.ask(&format!("rows{number}.csv"));
                self.loading = Some(Loading { command, refused: false, rest: sqls, number });
                return;
            }
            let fault = if sqls.is_empty() { fault } else { Fault::No };
            if self.run(&sql, number, false, fault, status).is_err() {
                return;
            }
        }
    }

    /// A packet of the file; an empty one ends it.
    fn file(&mut self, payload: &[u8]) {
        if !payload.is_empty() {
            let is_bad = payload == b"bad";
            self.loading.as_mut().unwrap().refused |= is_bad;
            return;
        }
        let Loading { command, refused, rest, number } = self.loading.take().unwrap();
        if refused {
            self.error(1366, "Incorrect integer value");
        } else {
            self.fine(if rest.is_empty() { 0 } else { MORE }, "Records: 2");
            self.statements(command, rest, number, Fault::No);
        }
        self.finish(command);
    }

    fn prepare(&mut self, body: &[u8], fault: Fault) -> Came {
        let text = String::from_utf8(body.to_vec()).unwrap();
        let (sqls, _) = self.texts.get(&text).cloned().unwrap_or_default();
        self.counter += 1;
        if fault == Fault::First {
            // `max_prepared_stmt_count`: what was prepared last stays it.
            return self.refuse(1461, "Can't create more than max_prepared_stmt_count statements");
        }
        let sql = match <[Sql; 1]>::try_from(sqls) {
            Ok([sql]) if !sql.is_refused_by_prepare() => sql,
            _ => {
                self.last = None;
                return self.refuse(1064, "You have an error in your SQL syntax");
            }
        };
        if matches!(fault, Fault::Dies | Fault::DiesSilently) {
            self.is_dead = true;
            return Came::Done;
        }
        let number = self.counter;
        let (parameters, columns) = (sql.parameters(), sql.shape().0);
        let columns = if sql.has_result() { columns } else { 0 };
        self.statements.insert(number, Prepared { sql, text, cursor: None, broken: false });
        self.last = Some(number);
        let omits = self.agreed.optional_metadata && !self.agreed.is_mariadb && columns.is_multiple_of(2);
        let counts = [columns, parameters].map(|count| u16::try_from(count).unwrap().to_le_bytes()).concat();
        let mut head = [&[0][..], &number.to_le_bytes(), &counts, &[0, 0, 0]].concat();
        if self.agreed.optional_metadata && !self.agreed.is_mariadb {
            head.push(u8::from(!omits));
        }
        self.send(head);
        self.out.last_mut().unwrap().gives = Some(number);
        if !omits {
            self.definitions(parameters, Some(0));
            self.definitions(columns, Some(0));
        }
        Came::Done
    }

    fn execute(&mut self, number: u32, flags: u8, given: &[u8], fault: Fault) -> Came {
        let Some(number) = self.find(number) else { return self.unknown_number(number) };
        let Prepared { sql, text, broken, .. } = self.statements[&number].clone();
        if sql.parameters() > 0 && given.get(1) != Some(&1) {
            self.malformed();
            return Came::Invalid(text);
        }
        if broken {
            self.error(1210, "Incorrect arguments to mysqld_stmt_send_long_data");
            return Came::Invalid(text);
        }
        self.statements.get_mut(&number).unwrap().cursor = None;
        let ran = Came::Ran(text.clone());
        if fault == Fault::AsksForFile {
            self.ask("/etc/passwd");
            return ran;
        }
        let (columns, rows) = sql.shape();
        if flags & 1 != 0 && matches!(sql, Sql::Select { .. } | Sql::Parameters(_)) && fault != Fault::First {
            // Its rows are fetched later.
            let fails = fault != Fault::No;
            self.head(columns, true, None);
            if fails {
                self.error(1690, "BIGINT value is out of range");
            } else {
                self.statements.get_mut(&number).unwrap().cursor = Some(rows);
                self.end(CURSOR);
            }
            return ran;
        }
        let _failed = self.run(&sql, run_of(&text), true, fault, 0);
        ran
    }

    fn bulk(&mut self, body: &[u8], fault: Fault) -> Came {
        if body.len() < 6 {
            return self.malformed();
        }
        let number = u32::from_le_bytes(*body.first_chunk().unwrap());
        let Some(number) = self.find(number) else { return self.unknown_number(number) };
        let Prepared { sql, text, .. } = self.statements[&number].clone();
        if !self.agreed.bulk || sql != Sql::Insert {
            self.error(1295, "not supported in the prepared statement protocol yet");
            return Came::Invalid(text);
        }
        let _failed = self.run(&sql, run_of(&text), true, fault, 0);
        Came::Ran(text)
    }

    fn long_data(&mut self, number: u32, parameter: u16) {
        if let Some(number) = self.find(number) {
            let statement = self.statements.get_mut(&number).unwrap();
            statement.broken |= usize::from(parameter) >= statement.sql.parameters();
        }
    }

    fn close(&mut self, number: u32) {
        if let Some(number) = self.find(number) {
            self.statements.remove(&number);
            if self.last == Some(number) {
                self.last = None;
            }
        }
    }

    fn reset_statement(&mut self, number: u32) -> Came {
        let Some(number) = self.find(number) else { return self.unknown_number(number) };
        let statement = self.statements.get_mut(&number).unwrap();
        (statement.cursor, statement.broken) = (None, false);
        self.fine(0, "");
        Came::Done
    }

    fn fetch(&mut self, number: u32, wanted: usize, fault: Fault) -> Came {
        let Some(number) = self.find(number) else { return self.unknown_number(number) };
        let statement = &self.statements[&number];
        let Some(left) = statement.cursor else {
            return self.refuse(1421, "The statement has no open cursor");
        };
        let (columns, now) = (statement.sql.shape().0, left.min(wanted));
        for row in 0..now {
            if self.falls(fault, row) {
                return Came::Done;
            }
            self.row(columns, row, true);
        }
        if fault == Fault::Later {
            return self.refuse(1690, "BIGINT value is out of range");
        }
        let ends = wanted > left;
        self.statements.get_mut(&number).unwrap().cursor = (!ends).then_some(left - now);
        self.end(if ends { LAST_ROW } else { CURSOR });
        Came::Done
    }
}
