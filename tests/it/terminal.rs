//! A command-line client that somebody types into.

use std::process::Stdio;

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use crate::support::PATIENCE;

pub(crate) struct Terminal {
    child: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
}

impl Terminal {
    pub(crate) fn psql(host: &str, port: u16) -> Self {
        Self::of(psql(host, port))
    }

    pub(crate) fn mariadb(host: &str, port: u16) -> Self {
        Self::of(mariadb(host, port))
    }

    pub(crate) fn of(mut command: Command) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().unwrap();
        let (input, output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        Self { child, input, output: BufReader::new(output).lines() }
    }

    pub(crate) async fn write(&mut self, sql: &str) {
        // One that has ended already says why.
        let _told_at_the_end = self.input.write_all(format!("{sql}\n").as_bytes()).await;
    }

    pub(crate) async fn line(&mut self) -> String {
        let line = tokio::time::timeout(3 * PATIENCE, self.output.next_line()).await.expect("the client is stuck");
        match line.unwrap() {
            Some(line) => line,
            None => panic!("the client has ended: {}", said(&mut self.child).await),
        }
    }

    /// A statement and the one line that answers it.
    pub(crate) async fn ask(&mut self, sql: &str) -> String {
        self.write(sql).await;
        self.line().await
    }

    /// Waits until it has ended by itself; the exit code and what it said of that.
    pub(crate) async fn end(self) -> (Option<i32>, String) {
        let Self { mut child, input: _open, mut output } = self;
        let ended = async {
            // It may be in the midst of rows.
            let reading = async { while output.next_line().await.is_ok_and(|line| line.is_some()) {} };
            let ((), said) = tokio::join!(reading, said(&mut child));
            (child.wait().await.unwrap().code(), said)
        };
        tokio::time::timeout(2 * PATIENCE, ended).await.expect("the client is stuck")
    }
}

async fn said(child: &mut Child) -> String {
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).await.unwrap();
    said
}

/// psql that stops at the first error.
pub(crate) fn psql(host: &str, port: u16) -> Command {
    let mut psql = Command::new("psql");
    psql.env("PGCONNECT_TIMEOUT", "20");
    psql.args(["-X", "-q", "-A", "-t", "-w", "-v", "ON_ERROR_STOP=1", "-U", "anyone"]);
    psql.args(["-h", host, "-p", &port.to_string()]);
    psql
}

/// mariadb that stops at the first error.
pub(crate) fn mariadb(host: &str, port: u16) -> Command {
    let mut mariadb = Command::new("mariadb");
    mariadb.args(["--no-defaults", "--skip-reconnect", "--skip-ssl", "--protocol=tcp", "-N", "-B", "-n"]);
    mariadb.args(["-u", "anyone", "-h", host, "-P", &port.to_string()]);
    mariadb
}
