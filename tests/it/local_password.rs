//! The password of a task: made by its relay, told to its owner, shown by their clients.

use bastion_sandbox::postgres::Flaws;
use serde_json::{Value, json};
use tokio::process::Command;

use crate::support::{PATIENCE, World, finish};
use crate::up::{Up, bastion, ports};

async fn world() -> World {
    World::start_with(Flaws::default(), |config| {
        config.change_relays(|relay| relay["local_password"] = json!(true)).unwrap();
    })
    .await
}

/// The password of a `ready` event, which is that of the task and so of every target.
fn password(ready: &Value) -> String {
    let password = ready["targets"][0]["password"].as_str().unwrap().to_owned();
    assert!(password.len() == 32 && ready["targets"][1]["password"] == password.as_str(), "{ready}");
    password
}

async fn psql(port: &str, password: &str) -> (i32, String, String) {
    let mut psql = Command::new("psql");
    psql.args(["-X", "-A", "-t", "-w", "-h", "localhost", "-U", "anyone", "-c", "select current_user", "-p", port]);
    psql.env("PGCONNECT_TIMEOUT", "20").env("PGPASSWORD", password);
    finish(psql).await
}

fn logged_in() -> (i32, String, String) {
    (0, "db_read".to_owned(), String::new())
}

async fn refused(port: &str, password: &str) {
    let (code, _, err) = psql(port, password).await;
    assert!(code == 2 && err.contains("access denied, the password is not the one of this bastion task"), "{err}");
}

#[tokio::test]
async fn the_password_of_the_task_is_on_the_card_and_clients_must_show_it() {
    let world = world().await;
    let local_ports = ports();
    let arguments: Vec<&str> = local_ports.iter().map(String::as_str).collect();
    let up = Up::start(&world, &arguments).await;
    let (password, port) = (password(&up.ready), up.port("orders").to_string());
    assert_eq!(psql(&port, &password).await, logged_in());
    refused(&port, "guess").await;
    let (code, _, err) = up.psql("orders", "select 1").await;
    assert!(code == 2 && err.contains("no password supplied"), "{err}");
    // A second terminal of the owner is told the same, on a card for people.
    let other_ports = ports();
    let mut connect = bastion(&world, "alice", &["connect", "demo"]);
    connect.args(&other_ports).stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::null());
    let mut child = connect.spawn().unwrap();
    let mut lines = tokio::io::AsyncBufReadExt::lines(tokio::io::BufReader::new(child.stdout.take().unwrap()));
    let card = async {
        while let Some(line) = lines.next_line().await.unwrap() {
            if line.contains("login") {
                return line;
            }
        }
        String::new()
    };
    let line = tokio::time::timeout(PATIENCE, card).await.unwrap();
    assert_eq!(line, format!("  login     any user, password {password}; the relay logs in as db_read"));
    child.kill().await.unwrap();
    let task = world.sandbox.tasks()[0].0.clone();
    let log = world.sandbox.task_log(&task);
    assert!(log.contains("\"kind\":\"client_auth\"") && !log.contains(&password), "{log}");
    assert_eq!(up.end().await.0, Some(0));
    world.stop().await;
}

#[tokio::test]
async fn a_task_that_is_woken_has_a_password_of_its_own_which_is_told() {
    let world = world().await;
    let local_ports = ports();
    let arguments: Vec<&str> = local_ports.iter().map(String::as_str).chain(["--wake"]).collect();
    let mut up = Up::start(&world, &arguments).await;
    let (first, port) = (password(&up.ready), up.port("orders").to_string());
    world.sandbox.stop_directly(up.ready["task"].as_str().unwrap());
    up.event(|event| event["state"] == "asleep").await;
    // The connection that wakes the task cannot know what it will ask for.
    refused(&port, &first).await;
    let told = up.event(|event| event["event"] == "password").await;
    let second = told["password"].as_str().unwrap();
    assert!(second.len() == 32 && second != first, "{told}");
    assert_eq!(psql(&port, second).await, logged_in());
    refused(&port, &first).await;
    let (code, events) = up.end().await;
    assert!(code == Some(0) && events.iter().all(|event| event["event"] != "password"), "{events:?}");
    world.stop().await;
}

#[tokio::test]
async fn the_password_is_told_before_the_launcher_goes_into_the_background() {
    let world = world().await;
    for json in [true, false] {
        let mut detached = bastion(&world, "alice", &["up", "demo", "--detach"]);
        detached.args(json.then_some("--json")).args(ports());
        let (code, out, err) = finish(detached).await;
        assert_eq!(code, 0, "{err}");
        let (password, port) = if json {
            let ready: Value = serde_json::from_str(out.lines().last().unwrap()).unwrap();
            (password(&ready), ready["targets"][0]["port"].to_string())
        } else {
            let after = |word: &str| {
                let start = out.find(word).unwrap_or_else(|| panic!("no {word:?} in {out}")) + word.len();
                out[start..].split_whitespace().next().unwrap().to_owned()
            };
            (after("password "), after("localhost:"))
        };
        assert_eq!(psql(&port, &password).await, logged_in());
        refused(&port, "guess").await;
        // It is in no argument of the process that stays, nor in its environment.
        for process in std::fs::read_dir("/proc").unwrap().flatten() {
            for file in ["cmdline", "environ"] {
                let seen = std::fs::read(process.path().join(file)).unwrap_or_default();
                assert!(!String::from_utf8_lossy(&seen).contains(&password), "{}", process.path().display());
            }
        }
        assert_eq!(finish(bastion(&world, "alice", &["down", "demo"])).await.0, 0);
    }
    world.stop().await;
}
