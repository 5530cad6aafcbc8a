//! The command line as people read it: every help page is a reviewed snapshot.

use tokio::process::Command;

use crate::support::{BASTION, finish};

/// What `bastion COMMAND --help` prints; of the program itself, if `command` is empty.
async fn help(command: &str) -> String {
    let mut help = Command::new(BASTION);
    help.args(command.split_whitespace()).arg("--help").env_clear().env("COLUMNS", "100");
    let (code, out, err) = finish(help).await;
    assert_eq!((code, err.as_str()), (0, ""), "{command}");
    out
}

/// The names of all commands, in the order of the help.
async fn commands() -> Vec<String> {
    let help = help("").await;
    let list = help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    let names = list.filter_map(|line| line.split_whitespace().next()).filter(|name| *name != "help");
    let names: Vec<String> = names.map(str::to_owned).collect();
    assert!(names.len() > 5, "{names:?}");
    names
}

#[tokio::test]
async fn every_help_page_is_reviewed() {
    let mut pages = format!("$ bastion --help\n{}\n\n", help("").await);
    for command in commands().await {
        pages += &format!("$ bastion {command} --help\n{}\n\n", help(&command).await);
    }
    insta::assert_snapshot!(pages);
}

#[tokio::test]
#[expect(clippy::disallowed_methods, reason = "the person at the terminal asks for the file")]
async fn the_document_of_the_command_line_is_what_the_program_prints() {
    let mut page = format!(
        "# The command line\n\nMade from the program's own help. The configuration that some options override: \
         [configuration.md](configuration.md).\n\n```\n{}\n```\n",
        help("").await.trim_end()
    );
    for command in commands().await {
        page += &format!("\n## bastion {command}\n\n```\n{}\n```\n", help(&command).await.trim_end());
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/cli.md");
    if std::env::var_os("BASTION_WRITE_DOCS").is_some() {
        std::fs::write(path, &page).unwrap();
    }
    let committed = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        committed == page,
        "docs/cli.md is not what the program prints; make it anew: BASTION_WRITE_DOCS=1 cargo nextest run --test it cli::"
    );
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
