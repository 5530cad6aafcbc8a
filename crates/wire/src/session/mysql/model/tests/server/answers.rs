//! What the server of the model says.

use super::{Failed, Fault, MORE, OUT_PARAMETERS, Packet, Server};
use crate::session::mysql::model::tests::sql::Sql;

impl Server {
    pub(super) fn send(&mut self, payload: Vec<u8>) {
        self.out.push(Packet { sequence: self.sequence, payload, ends: None, asks: false, gives: None });
        self.sequence = self.sequence.wrapping_add(1);
    }

    pub(super) fn error(&mut self, number: u16, text: &str) {
        self.send([&[0xff][..], &number.to_le_bytes(), b"#HY000", text.as_bytes()].concat());
    }

    pub(super) fn fine(&mut self, status: u16, text: &str) {
        let head = [&[0, 0, 0][..], &(status | 2).to_le_bytes(), &[0, 0]].concat();
        let text = if text.is_empty() { Vec::new() } else { [&[lenenc(text.len())], text.as_bytes()].concat() };
        self.send([head, text].concat());
    }

    /// An EOF packet, or the OK packet in its place.
    pub(super) fn end(&mut self, status: u16) {
        let status = (status | 2).to_le_bytes();
        match self.agreed.deprecates_eof {
            true => self.send([&[0xfe, 0, 0][..], &status, &[0, 0]].concat()),
            false => self.send([&[0xfe, 0, 0][..], &status].concat()),
        }
    }

    pub(super) fn definitions(&mut self, count: usize, eof: Option<u16>) {
        for column in 0..count {
            let name = [b'c'; 3].repeat(column + 1);
            let tail = [0x0c, 0x3f, 0, 1, 0, 0, 0, 3, 0x81, 0, 0, 0, 0];
            let payload =
                [&b"\x03def\x00\x00\x00"[..], &[lenenc(name.len())], &name, &[lenenc(name.len())], &name, &tail];
            self.send(payload.concat());
        }
        if let Some(status) = eof.filter(|_| count > 0 && !self.agreed.deprecates_eof) {
            self.end(status);
        }
    }

    /// The head of a result set.
    pub(super) fn head(&mut self, columns: usize, is_binary: bool, eof: Option<u16>) {
        // MariaDB leaves definitions out only where the client has them from a prepare.
        let omits =
            self.agreed.optional_metadata && columns.is_multiple_of(2) && (is_binary || !self.agreed.is_mariadb);
        let count = lenenc(columns);
        let flag = u8::from(!omits);
        match (self.agreed.optional_metadata, self.agreed.is_mariadb) {
            (false, _) => self.send(vec![count]),
            (true, true) => self.send(vec![count, flag]),
            (true, false) => self.send(vec![flag, count]),
        }
        match omits {
            false => self.definitions(columns, eof),
            true => {
                if let Some(status) = eof.filter(|_| !self.agreed.deprecates_eof) {
                    self.end(status);
                }
            }
        }
    }

    pub(super) fn row(&mut self, columns: usize, number: usize, is_binary: bool) {
        let values = match is_binary {
            true => [vec![0; 1 + (columns + 9) / 8], vec![7; 4 * columns]].concat(),
            // NULL, an empty text, a short one, one that has three bytes of length.
            false => {
                let one = match number % 4 {
                    0 => vec![0xfb],
                    1 => vec![0],
                    2 => b"\x011".to_vec(),
                    _ => [&[0xfd, 0x2c, 1, 0][..], &[0xfe; 300]].concat(),
                };
                one.repeat(columns)
            }
        };
        self.send(values);
    }

    pub(super) fn result(&mut self, sql: &Sql, is_binary: bool, fault: Fault, status: u16) -> Result<(), Failed> {
        let (columns, rows) = sql.shape();
        self.progress(2);
        self.head(columns, is_binary, Some(status & !MORE));
        for number in 0..rows {
            if fault == Fault::Later && number + 1 == rows || self.falls(fault, number) {
                self.error(1690, "BIGINT value is out of range");
                return Err(Failed);
            }
            self.row(columns, number, is_binary);
            if number == 1 {
                self.progress(1);
            }
        }
        self.end(status);
        Ok(())
    }

    fn progress(&mut self, count: usize) {
        for _ in 0..count {
            if self.agreed.is_mariadb && self.agreed.progress {
                self.send(b"\xff\xff\xff\x01\x01\x02\x10\x27\x00\x0acopy to tmp".to_vec());
            }
        }
    }

    /// Whether the server goes away here.
    pub(super) fn falls(&mut self, fault: Fault, at: usize) -> bool {
        let dies = matches!(fault, Fault::Dies | Fault::DiesSilently) && at == 1;
        self.is_dead |= dies;
        dies
    }

    /// Runs one statement: an answer, or one of the results of one. `status` is that of the last packet.
    pub(super) fn run(
        &mut self,
        sql: &Sql,
        number: usize,
        is_binary: bool,
        fault: Fault,
        status: u16,
    ) -> Result<(), Failed> {
        if fault == Fault::First {
            self.error(1146, "no such table");
            return Err(Failed);
        }
        if self.falls(fault, usize::from(number.is_multiple_of(3))) {
            if fault == Fault::Dies {
                self.error(1053, "Server shutdown in progress");
            }
            return Err(Failed);
        }
        match sql {
            Sql::Select { .. } | Sql::FailsInRows => {
                let fault = if *sql == Sql::FailsInRows { Fault::Later } else { fault };
                return self.result(sql, is_binary, fault, status);
            }
            Sql::Parameters(_) if is_binary => return self.result(sql, is_binary, fault, status),
            Sql::Insert => {
                self.progress(1);
                self.fine(status, ["", "Records: 2", "Rows matched"][number % 3]);
            }
            Sql::Call => {
                let inner = Sql::Select { columns: 1 + number % 3, rows: number % 3 };
                self.result(&inner, is_binary, Fault::No, MORE)?;
                if fault == Fault::Later {
                    self.error(1146, "no such table");
                    return Err(Failed);
                }
                self.fine(status, "");
            }
            Sql::CallOut if is_binary => {
                // MySQL's last EOF packet of these does not say that more comes; the first one does.
                let keeps = self.agreed.is_mariadb || self.agreed.deprecates_eof;
                self.head(1, true, Some(MORE | OUT_PARAMETERS));
                self.row(1, 0, true);
                self.end(if keeps { MORE | OUT_PARAMETERS } else { 0 });
                self.fine(status, "");
            }
            Sql::CallOut => self.fine(status, ""),
            Sql::Pretends => {
                let text = "Unknown prepared statement handler (1) given to mysqld_stmt_execute";
                self.error([1243, 1835, 1210, 1047][number % 4], text);
                return Err(Failed);
            }
            // Statements with names have numbers too, by which nobody finds them (`Statement_map::find`).
            Sql::Prepare(name) => {
                self.counter += 1;
                let sql = if number.is_multiple_of(2) { Sql::Select { columns: 1, rows: 1 } } else { Sql::Pretends };
                self.named.insert(*name, sql);
                self.fine(status, "Statement prepared");
            }
            Sql::Deallocate(name) => {
                if self.named.remove(name).is_none() {
                    self.error(1243, "Unknown prepared statement handler (x) given to DEALLOCATE PREPARE");
                    return Err(Failed);
                }
                self.fine(status, "");
            }
            Sql::Execute(name) => {
                let Some(sql) = self.named.get(name).cloned() else {
                    self.error(1243, "Unknown prepared statement handler (x) given to EXECUTE");
                    return Err(Failed);
                };
                return self.run(&sql, number, is_binary, fault, status);
            }
            Sql::Parameters(_) | Sql::Fails | Sql::NoSyntax | Sql::Empty | Sql::Load => {
                self.error(1064, "You have an error in your SQL syntax");
                return Err(Failed);
            }
        }
        Ok(())
    }
}

/// A length of one byte.
fn lenenc(length: usize) -> u8 {
    u8::try_from(length).ok().filter(|length| *length < 251).unwrap()
}
