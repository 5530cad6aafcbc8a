//! The list of what the launcher asks AWS for, `tests/fixtures/launcher-calls.json`, read from its source. The policies
//! of `cdk/` are tested against this list, so policy and launcher cannot drift apart.
//!
//! `UPDATE_FIXTURES=1 cargo test --test launcher_calls` writes it anew.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::json;

/// What makes an error better for whoever may do it; no policy of bastion allows it, and the launcher does without.
const OPTIONAL: &[&str] = &["ssm:GetParametersByPath"];

#[test]
fn the_list_of_calls_is_what_the_launcher_does() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let source: String = rust_files(&root.join("src/aws")).iter().map(|file| read(file)).collect();
    let launch = read(&root.join("src/cli/launch.rs"));

    let mut calls = BTreeSet::new();
    for service in clients(&source) {
        let operations = operations(&source, &service);
        assert!(!operations.is_empty(), "the client of {service} is there and never called");
        calls.extend(operations.iter().map(|operation| format!("{service}:{operation}")));
    }
    for optional in OPTIONAL {
        assert!(calls.remove(*optional), "the launcher does not call {optional}");
    }
    assert!(source.contains("const SERVICE: &str = \"ssmmessages\";"), "the websocket is signed for another service");
    calls.insert("ssmmessages:OpenDataChannel".to_owned());

    let list = json!({
        "calls": calls,
        // Of the task: keys of tags and names of variables in the overrides.
        "tags": quoted(&launch, "bastion:"),
        "environment": quoted(&launch, "BASTION_"),
    });
    let text = format!("{}\n", serde_json::to_string_pretty(&list).unwrap());
    let fixture = root.join("tests/fixtures/launcher-calls.json");
    #[expect(clippy::disallowed_methods, reason = "a switch of this test, as insta has")]
    if std::env::var_os("UPDATE_FIXTURES").is_some() {
        fs::write(&fixture, &text).unwrap();
    }
    let fix = "run UPDATE_FIXTURES=1 cargo test --test launcher_calls, then the tests of cdk/";
    assert_eq!(read(&fixture), text, "{} is not what the launcher does: {fix}", fixture.display());
}

/// The services whose SDK clients the launcher holds: `ecs` for a field `ecs: aws_sdk_ecs::Client`.
fn clients(source: &str) -> BTreeSet<String> {
    let found: BTreeSet<String> = source
        .match_indices("::Client,")
        .filter_map(|(at, _)| source[..at].rsplit("aws_sdk_").next())
        .map(str::to_owned)
        .collect();
    for name in &found {
        assert!(source.contains(&format!("{name}: aws_sdk_{name}::Client,")), "the field of {name} has another name");
    }
    assert!(found.len() >= 3, "the clients were not found: {found:?}");
    found
}

/// `RunTask` for `self.ecs.run_task()`, over several lines or one.
fn operations(source: &str, service: &str) -> BTreeSet<String> {
    source
        .match_indices(&format!(".{service}"))
        .filter_map(|(at, found)| source[at + found.len()..].trim_start().strip_prefix('.'))
        .filter_map(|rest| Some(rest.split_once("()")?.0))
        .filter(|name| name.chars().all(|c| c.is_ascii_lowercase() || c == '_'))
        .map(|name| name.split('_').map(capitalized).collect())
        .collect()
}

fn capitalized(word: &str) -> String {
    let (first, rest) = word.split_at(1);
    first.to_ascii_uppercase() + rest
}

/// The string literals of `source` that start with `prefix`, without tests.
fn quoted(source: &str, prefix: &str) -> BTreeSet<String> {
    let code = source.split("#[cfg(test)]").next().unwrap_or_default();
    code.match_indices(&format!("\"{prefix}"))
        .filter_map(|(at, _)| code[at + 1..].split('"').next())
        .map(str::to_owned)
        .collect()
}

fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).expect("the folder is there").map(|entry| entry.expect("it is readable").path());
    let mut files: Vec<PathBuf> = entries.filter(|path| path.extension().is_some_and(|end| end == "rs")).collect();
    files.sort();
    files
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
