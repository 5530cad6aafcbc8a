//! Black-box tests: the built binary against a real PostgreSQL and the sandbox's AWS. One binary, so that it links once.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test code")]

mod access;
mod alive;
mod audit;
mod aws_login;
mod cli;
mod container;
mod deployed;
mod ends;
mod fake_relay;
mod first_words;
mod grant_sql;
mod hold;
mod identity;
mod lease_end;
mod local_password;
mod local_ports;
mod markers;
mod memory;
mod mysql_parity;
mod network;
mod others;
mod proxy;
mod relay;
mod relay_mysql;
mod secrets;
mod secrets_engine;
mod secrets_refused;
mod support;
#[path = "../template/mod.rs"]
mod template;
mod terminal;
mod true_records;
mod trust;
mod up;
mod vault;
mod vault_ca;
mod vault_caller;
mod ways_out;
mod writes;

/// A file that is not a module here would never run.
#[test]
fn no_file_is_forgotten() {
    let text = include_str!("main.rs");
    for entry in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let module = name.trim_end_matches(".rs");
        assert!(module == "main" || module == "snapshots" || text.contains(&format!("mod {module};")), "{name}");
    }
}
