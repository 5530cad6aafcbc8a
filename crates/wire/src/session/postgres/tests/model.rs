//! A server of PostgreSQL as its main loop is (`src/backend/tcop/postgres.c`): what it runs of a client's messages, and what it
//! answers. It fails where it is told to.

use std::collections::{BTreeMap, VecDeque};

use crate::pg::message;

/// One statement of SQL. The number makes its text another one than all others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Sql {
    Select,
    Fails,
    NoSyntax,
    Empty,
    Begin,
    Commit,
    Rollback,
    Savepoint,
    RollbackTo,
    Prepare(u8),
    Deallocate(u8),
    DeallocateAll,
    DiscardAll,
    Execute(u8),
    Declare(u8),
    Close(u8),
    CopyIn,
    CopyOut,
}

pub(super) fn name(number: u8) -> String {
    match number {
        0 => String::new(),
        LONG => format!("{}a", "n".repeat(63)),
        LONGER => format!("{}b", "n".repeat(63)),
        CUT => "n".repeat(63),
        n => format!("n{n}"),
    }
}

/// Names that the server takes for one.
pub(super) const LONG: u8 = 3;
pub(super) const LONGER: u8 = 4;
pub(super) const CUT: u8 = 5;

/// The name as the server keeps it.
fn kept(number: u8) -> u8 {
    if matches!(number, LONG | LONGER) { CUT } else { number }
}

pub(super) fn text(sql: &Sql, number: usize) -> String {
    match sql {
        Sql::Select => format!("select {number}"),
        Sql::Fails => format!("select {number} / 0"),
        Sql::NoSyntax => format!("selct {number}"),
        Sql::Empty => String::new(),
        Sql::Begin => format!("begin /* {number} */"),
        Sql::Commit => format!("commit -- {number}"),
        Sql::Rollback => format!("rollback /* {number} */"),
        Sql::Savepoint => format!("savepoint a /* {number} */"),
        Sql::RollbackTo => format!("rollback -- {number}\nto a"),
        Sql::Prepare(n) => format!("prepare {} as select {number}", name(*n)),
        Sql::Deallocate(n) => format!("DEALLOCATE prepare \"{}\" /* {number} */", name(*n)),
        Sql::DeallocateAll => format!("deallocate all /* {number} */"),
        Sql::DiscardAll => format!("discard all /* {number} */"),
        Sql::Execute(n) => format!("execute {} /* {number} */", name(*n)),
        Sql::Declare(n) => format!("declare {} cursor for select {number}", name(*n)),
        Sql::Close(n) => format!("close {} /* {number} */", name(*n)),
        Sql::CopyIn => format!("copy t from stdin /* {number} */"),
        Sql::CopyOut => format!("copy t to stdout /* {number} */"),
    }
}

/// A message of the client. Names are numbers, 0 is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Said {
    Parse(u8, Sql),
    Bind {
        portal: u8,
        statement: u8,
    },
    DescribeStatement(u8),
    DescribePortal(u8),
    /// So many rows, of two; 0 is all.
    Execute {
        portal: u8,
        rows: u8,
    },
    CloseStatement(u8),
    ClosePortal(u8),
    Sync,
    Flush,
    Query(Vec<Sql>),
    Function,
    CopyData,
    CopyDone,
    CopyFail,
}

/// What came of it at the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Came {
    /// It was not read.
    Unread,
    Skipped,
    /// Nothing to run, or more of what has a record.
    Nothing,
    Ran(String),
    /// Refused before it began.
    Refused,
    Done,
}

#[derive(Debug, Clone)]
struct Prepared {
    sql: Sql,
    text: String,
}

#[derive(Debug, Clone)]
struct Portal {
    sql: Sql,
    text: String,
    /// Nothing of it has run.
    fresh: bool,
    broken: bool,
    /// Savepoints when it was made.
    level: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Transaction {
    None,
    Block,
    Failed,
}

/// An error, and nothing more of the message.
struct Failed;

enum Copying {
    No,
    Execute,
    /// The statements behind it, and the number of the text.
    Query(VecDeque<Sql>, usize),
}

pub(super) struct Server {
    prepared: BTreeMap<u8, Prepared>,
    portals: BTreeMap<u8, Portal>,
    transaction: Transaction,
    savepoints: usize,
    skips: bool,
    /// There is something to commit.
    started: bool,
    copying: Copying,
    pub(super) is_dead: bool,
    pub(super) out: Vec<u8>,
}

fn encoded(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut out = bytes::BytesMut::new();
    message::encode(tag, body, &mut out);
    out.to_vec()
}

pub(super) fn said(what: &Said, number: usize) -> Vec<u8> {
    let name = |n: &u8| [name(*n).as_bytes(), b"\0"].concat();
    match what {
        Said::Parse(n, sql) => encoded(b'P', &[&name(n), text(sql, number).as_bytes(), b"\0\0\0"].concat()),
        Said::Bind { portal, statement } => encoded(b'B', &[&name(portal)[..], &name(statement), &[0; 6]].concat()),
        Said::DescribeStatement(n) => encoded(b'D', &[b"S", &name(n)[..]].concat()),
        Said::DescribePortal(n) => encoded(b'D', &[b"P", &name(n)[..]].concat()),
        Said::Execute { portal, rows } => encoded(b'E', &[&name(portal)[..], &[0, 0, 0, *rows]].concat()),
        Said::CloseStatement(n) => encoded(b'C', &[b"S", &name(n)[..]].concat()),
        Said::ClosePortal(n) => encoded(b'C', &[b"P", &name(n)[..]].concat()),
        Said::Sync => encoded(b'S', b""),
        Said::Flush => encoded(b'H', b""),
        Said::Query(sqls) => encoded(b'Q', &[query(sqls, number).as_bytes(), b"\0"].concat()),
        Said::Function => encoded(b'F', &[0, 0, 4, 210, 0, 0, 0, 0, 0, 0]),
        Said::CopyData => encoded(b'd', b"1\n"),
        Said::CopyDone => encoded(b'c', b""),
        Said::CopyFail => encoded(b'f', b"no\0"),
    }
}

/// With the names as the server keeps them.
fn cut(what: &Said) -> Said {
    match what {
        Said::Parse(n, sql) => Said::Parse(kept(*n), sql.clone()),
        Said::Bind { portal, statement } => Said::Bind { portal: kept(*portal), statement: kept(*statement) },
        Said::DescribeStatement(n) => Said::DescribeStatement(kept(*n)),
        Said::DescribePortal(n) => Said::DescribePortal(kept(*n)),
        Said::Execute { portal, rows } => Said::Execute { portal: kept(*portal), rows: *rows },
        Said::CloseStatement(n) => Said::CloseStatement(kept(*n)),
        Said::ClosePortal(n) => Said::ClosePortal(kept(*n)),
        other => other.clone(),
    }
}

pub(super) fn query(sqls: &[Sql], number: usize) -> String {
    sqls.iter().map(|sql| text(sql, number)).collect::<Vec<_>>().join(";")
}

impl Server {
    pub(super) fn new() -> Self {
        Self {
            prepared: BTreeMap::new(),
            portals: BTreeMap::new(),
            transaction: Transaction::None,
            savepoints: 0,
            skips: false,
            started: false,
            copying: Copying::No,
            is_dead: false,
            out: Vec::new(),
        }
    }

    fn send(&mut self, tag: u8, body: &[u8]) {
        self.out.extend(encoded(tag, body));
    }

    fn send_error(&mut self, severity: &str) {
        let body = format!("S{severity}\0V{severity}\0C22012\0Mno\0\0");
        self.send(b'E', body.as_bytes());
    }

    fn send_ready(&mut self) {
        let status = match self.transaction {
            Transaction::None => b"I",
            Transaction::Block => b"T",
            Transaction::Failed => b"E",
        };
        self.send(b'Z', status);
    }

    /// After an error: the transaction is over, or its block has failed.
    fn abort(&mut self) {
        self.started = false;
        match self.transaction {
            Transaction::None => self.portals.clear(),
            Transaction::Block | Transaction::Failed => {
                let level = self.savepoints;
                self.portals
                    .values_mut()
                    .filter(|portal| portal.level >= level)
                    .for_each(|portal| portal.broken = true);
                self.transaction = Transaction::Failed;
            }
        }
    }

    /// At the end of a message that ends what has no block.
    fn finish(&mut self) {
        self.started = false;
        if self.transaction == Transaction::None {
            self.portals.clear();
        }
    }

    fn die(&mut self) {
        self.send_error("FATAL");
        self.is_dead = true;
    }

    /// One message. `fails`: with an error, where there can be one.
    pub(super) fn handle(&mut self, what: &Said, number: usize, fails: bool) -> Came {
        if self.is_dead {
            return Came::Unread;
        }
        let what = &cut(what);
        if !matches!(self.copying, Copying::No) {
            self.copy_in(what, fails);
            return Came::Done;
        }
        if *what == Said::Sync {
            self.skips = false;
        }
        if self.skips {
            return Came::Skipped;
        }
        let extended = !matches!(
            what,
            Said::Sync | Said::Query(_) | Said::Function | Said::CopyData | Said::CopyDone | Said::CopyFail
        );
        self.started |= extended;
        let mut came = Came::Done;
        let done = self.message(what, number, fails, &mut came);
        if done.is_err() {
            self.send_error("ERROR");
            self.abort();
            self.skips = extended;
            if came == Came::Done {
                came = Came::Refused;
            }
        }
        if !matches!(self.copying, Copying::No) {
            return came;
        }
        match what {
            Said::Sync | Said::Query(_) | Said::Function => {
                self.finish();
                self.send_ready();
            }
            _ => {}
        }
        came
    }

    fn message(&mut self, what: &Said, number: usize, fails: bool, came: &mut Came) -> Result<(), Failed> {
        match what {
            Said::Parse(n, sql) => {
                if *n == 0 {
                    self.prepared.remove(n);
                }
                let refused = self.is_refused(sql) || *sql == Sql::NoSyntax || self.prepared.contains_key(n);
                if fails || refused {
                    return Err(Failed);
                }
                self.prepared.insert(*n, Prepared { sql: sql.clone(), text: text(sql, number) });
                self.send(b'1', b"");
            }
            Said::Bind { portal, statement } => {
                let Prepared { sql, text } = self.prepared.get(statement).cloned().ok_or(Failed)?;
                if fails || self.is_refused(&sql) || *portal != 0 && self.portals.contains_key(portal) {
                    return Err(Failed);
                }
                let made = Portal { sql, text, fresh: true, broken: false, level: self.savepoints };
                self.portals.insert(*portal, made);
                self.send(b'2', b"");
            }
            Said::DescribeStatement(n) => {
                if fails || !self.prepared.contains_key(n) {
                    return Err(Failed);
                }
                self.send(b't', &[0, 0]);
                self.describe(number);
            }
            Said::DescribePortal(n) => {
                if fails || !self.portals.contains_key(n) {
                    return Err(Failed);
                }
                self.describe(number);
            }
            Said::Execute { portal, rows } => return self.execute(*portal, *rows, fails, came),
            Said::CloseStatement(n) => {
                self.prepared.remove(n);
                self.send(b'3', b"");
            }
            Said::ClosePortal(n) => {
                self.portals.remove(n);
                self.send(b'3', b"");
            }
            Said::Sync => {
                // A constraint that is looked at last.
                if fails && self.started && self.transaction == Transaction::None {
                    return Err(Failed);
                }
            }
            Said::Query(sqls) => {
                *came = Came::Ran(query(sqls, number));
                self.prepared.remove(&0);
                if fails || sqls.contains(&Sql::NoSyntax) {
                    return Err(Failed);
                }
                self.portals.remove(&0);
                return self.statements(sqls.iter().cloned().collect(), number);
            }
            Said::Function => {
                *came = Came::Ran("1234".to_owned());
                if fails || self.transaction == Transaction::Failed {
                    return Err(Failed);
                }
                self.send(b'V', &[0xff; 4]);
            }
            Said::Flush | Said::CopyData | Said::CopyDone | Said::CopyFail => {}
        }
        Ok(())
    }

    /// Some have rows.
    fn describe(&mut self, number: usize) {
        match number.is_multiple_of(2) {
            true => self.send(b'n', b""),
            false => self.send(b'T', &[0, 0]),
        }
    }

    fn execute(&mut self, n: u8, rows: u8, fails: bool, came: &mut Came) -> Result<(), Failed> {
        let Some(portal) = self.portals.get(&n).cloned() else { return Err(Failed) };
        if portal.sql == Sql::Empty {
            *came = Came::Nothing;
            self.send(b'I', b"");
            return Ok(());
        }
        *came = if portal.fresh { Came::Ran(portal.text.clone()) } else { Came::Nothing };
        if let Some(portal) = self.portals.get_mut(&n) {
            portal.fresh = false;
        }
        if self.is_refused(&portal.sql) || portal.broken || fails {
            return Err(Failed);
        }
        match portal.sql {
            Sql::Select | Sql::Prepare(_) if rows == 1 => {
                self.send(b'D', &[0, 1, 0xff, 0xff, 0xff, 0xff]);
                self.send(b's', b"");
                return Ok(());
            }
            Sql::CopyIn => {
                self.send(b'G', &[0, 0, 0]);
                self.copying = Copying::Execute;
                return Ok(());
            }
            Sql::Select => {}
            _ if !portal.fresh => return Err(Failed),
            _ => {}
        }
        self.run(&portal.sql, &portal.text, Some(n))?;
        self.send(b'C', b"DONE\0");
        Ok(())
    }

    /// In a block that has failed, only its end runs.
    fn is_refused(&self, sql: &Sql) -> bool {
        let ends = matches!(sql, Sql::Commit | Sql::Rollback | Sql::RollbackTo | Sql::Empty);
        self.transaction == Transaction::Failed && !ends
    }

    /// The statements of a Query, up to one that copies in.
    fn statements(&mut self, mut sqls: VecDeque<Sql>, number: usize) -> Result<(), Failed> {
        while let Some(sql) = sqls.pop_front() {
            if self.is_refused(&sql) {
                return Err(Failed);
            }
            match sql {
                Sql::Empty => {
                    self.send(b'I', b"");
                    continue;
                }
                Sql::CopyIn => {
                    self.send(b'G', &[0, 0, 0]);
                    self.copying = Copying::Query(sqls, number);
                    return Ok(());
                }
                Sql::Select => self.send(b'T', &[0, 0]),
                _ => {}
            }
            self.run(&sql, &text(&sql, number), None)?;
            self.send(b'C', b"DONE\0");
        }
        Ok(())
    }

    fn run(&mut self, sql: &Sql, text: &str, active: Option<u8>) -> Result<(), Failed> {
        match sql {
            Sql::Select => self.send(b'D', &[0, 1, 0xff, 0xff, 0xff, 0xff]),
            Sql::Fails | Sql::NoSyntax => return Err(Failed),
            Sql::Empty | Sql::CopyIn => {}
            Sql::Begin => self.transaction = Transaction::Block,
            Sql::Commit | Sql::Rollback => {
                (self.transaction, self.savepoints) = (Transaction::None, 0);
                self.portals.clear();
            }
            Sql::Savepoint if self.transaction == Transaction::Block => self.savepoints += 1,
            Sql::RollbackTo if self.savepoints > 0 => {
                self.transaction = Transaction::Block;
                let level = self.savepoints;
                self.portals.retain(|_, portal| portal.level < level);
            }
            Sql::Savepoint | Sql::RollbackTo => return Err(Failed),
            Sql::Prepare(n) => {
                if *n == 0 || self.prepared.contains_key(n) {
                    return Err(Failed);
                }
                self.prepared.insert(*n, Prepared { sql: Sql::Select, text: format!("of SQL: {text}") });
            }
            Sql::Deallocate(n) => {
                if *n == 0 || self.prepared.remove(n).is_none() {
                    return Err(Failed);
                }
            }
            Sql::DeallocateAll => self.prepared.retain(|n, _| *n == 0),
            Sql::DiscardAll => {
                if self.transaction != Transaction::None {
                    return Err(Failed);
                }
                self.prepared.retain(|n, _| *n == 0);
                self.portals.clear();
            }
            Sql::Execute(n) => {
                let prepared = self.prepared.get(n).filter(|_| *n != 0).cloned().ok_or(Failed)?;
                if matches!(prepared.sql, Sql::Execute(_) | Sql::CopyIn | Sql::CopyOut) {
                    return Err(Failed);
                }
                return self.run(&prepared.sql, &prepared.text, active);
            }
            Sql::Declare(n) => {
                if *n == 0 || self.transaction != Transaction::Block || self.portals.contains_key(n) {
                    return Err(Failed);
                }
                let text = format!("of SQL: {text}");
                let made = Portal { sql: Sql::Select, text, fresh: true, broken: false, level: self.savepoints };
                self.portals.insert(*n, made);
            }
            Sql::Close(n) => {
                if *n == 0 || active == Some(*n) || self.portals.remove(n).is_none() {
                    return Err(Failed);
                }
            }
            Sql::CopyOut => {
                self.send(b'H', &[0, 0, 0]);
                self.send(b'd', b"1\n");
                self.send(b'c', b"");
            }
        }
        Ok(())
    }

    /// A message while a COPY reads.
    fn copy_in(&mut self, what: &Said, fails: bool) {
        match what {
            Said::CopyData if !fails => {}
            Said::Sync | Said::Flush => {}
            Said::CopyDone if !fails => {
                self.send(b'C', b"COPY 1\0");
                match std::mem::replace(&mut self.copying, Copying::No) {
                    Copying::Query(rest, number) => {
                        if self.statements(rest, number).is_err() {
                            self.send_error("ERROR");
                            self.abort();
                        }
                        if matches!(self.copying, Copying::No) {
                            self.finish();
                            self.send_ready();
                        }
                    }
                    Copying::No | Copying::Execute => {}
                }
            }
            Said::CopyData | Said::CopyDone | Said::CopyFail => self.fail_copy(),
            _ => self.die(),
        }
    }

    /// The COPY under way fails.
    pub(super) fn fail_copy(&mut self) {
        let copying = std::mem::replace(&mut self.copying, Copying::No);
        if matches!(copying, Copying::No) || self.is_dead {
            return;
        }
        self.send_error("ERROR");
        self.abort();
        match copying {
            Copying::Execute => self.skips = true,
            _ => {
                self.finish();
                self.send_ready();
            }
        }
    }
}
