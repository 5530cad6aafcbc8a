//! The command line as people read it: every help page is a reviewed snapshot.

use tokio::process::Command;

use crate::support::{BASTION, finish};

#[tokio::test]
async fn every_help_page_is_reviewed() {
    let mut pages = String::new();
    for command in ["", "up", "connect", "down", "status", "grant-sql", "trust", "relay"] {
        let mut help = Command::new(BASTION);
        help.args(command.split_whitespace()).arg("--help").env_clear().env("COLUMNS", "100");
        let (code, out, err) = finish(help).await;
        assert_eq!((code, err.as_str()), (0, ""), "{command}");
        pages += &format!("$ bastion {command} --help\n{out}\n\n");
    }
    insta::assert_snapshot!(pages.replace("bastion  --help", "bastion --help"));
}

#[tokio::test]
async fn a_bad_command_line_exits_2_and_says_what_was_meant() {
    for (arguments, part) in [
        (&["upp"][..], "tip: a similar subcommand exists: 'up'"),
        (&["up"], "<ENV>"),
        (&["up", "demo", "--local-port", "orders"], "write TARGET=PORT, for example orders=5432"),
        (&["up", "demo", "--timeout", "soon"], "write a number with a unit, for example 90s or 5m"),
        (&["up", "demo", "--reason", " "], "a reason has 1 to 256 characters, this one has 0"),
    ] {
        let mut command = Command::new(BASTION);
        let (code, out, err) = finish({
            command.args(arguments).env_clear();
            command
        })
        .await;
        assert_eq!((code, out.as_str()), (2, ""), "{arguments:?}");
        assert!(err.contains(part), "{arguments:?}: {err}");
    }
}
