//! The password of a task: made by its relay, told to its owner, shown by their clients.

use bastion_sandbox::postgres::Flaws;
use serde_json::{Value, json};
use tokio::process::Command;

use crate::support::{World, finish};
use crate::up::{Up, bastion, ports};

#[tokio::test]
async fn the_password_of_the_task_is_on_the_card_and_clients_must_show_it() {
    let world = World::start_with(Flaws::default(), |config| {
        for definition in &mut config.task_definitions {
            let text = definition.environment.get_mut("BASTION_CONFIG").unwrap();
            let mut relay: Value = serde_json::from_str(text).unwrap();
            relay["local_password"] = json!(true);
            *text = relay.to_string();
        }
    })
    .await;
    let local_ports = ports().await;
    let arguments: Vec<&str> = local_ports.iter().map(String::as_str).collect();
    let up = Up::start(&world, &arguments).await;
    let password = up.ready["targets"][0]["password"].as_str().unwrap().to_owned();
    assert!(password.len() == 32 && up.ready["targets"][1]["password"] == password.as_str(), "{}", up.ready);
    let psql = async |password: &str| {
        let mut psql = Command::new("psql");
        psql.args(["-X", "-A", "-t", "-w", "-h", "localhost", "-U", "anyone", "-c", "select current_user"]);
        psql.args(["-p", &up.port("orders").to_string()]).env("PGCONNECT_TIMEOUT", "20").env("PGPASSWORD", password);
        finish(psql).await
    };
    assert_eq!(psql(&password).await, (0, "db_read".to_owned(), String::new()));
    let (code, _, err) = psql("guess").await;
    assert!(code == 2 && err.contains("access denied, the password is not the one of this bastion task"), "{err}");
    let (code, _, err) = up.psql("orders", "select 1").await;
    assert!(code == 2 && err.contains("no password supplied"), "{err}");
    // A second terminal of the owner is told the same, on a card for people.
    let other_ports = ports().await;
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
    let line = tokio::time::timeout(crate::support::PATIENCE, card).await.unwrap();
    assert_eq!(line, format!("  login     any user, password {password}; the relay logs in as db_read"));
    child.kill().await.unwrap();
    let task = world.sandbox.tasks()[0].0.clone();
    let log = world.sandbox.task_log(&task);
    assert!(log.contains("\"kind\":\"client_auth\"") && !log.contains(&password), "{log}");
    assert_eq!(up.end().await.0, Some(0));
    world.stop().await;
}
