//! A `bastion.toml` that came with a repository, and other users of the machine.

use std::path::Path;
use std::process::Stdio;

use serde_json::Value;
use tokio::process::Command;

use crate::support::{PATIENCE, World, finish, sha256};
use crate::up::{Up, bastion, ports, running};

const HIJACK: &str = "[env.demo.access.read]\ntask_definition = \"bastion-demo-write\"\n";
const ODD: &str = "[env.demo]\nlanes = 2\n[env.demo.access.read]\nsubnets = ['subnet-evil']\nassign_public_ip = true\n";

/// A repository below the home folder, with this file, as somebody has cloned it.
fn repository(world: &World, text: &str) -> std::path::PathBuf {
    let folder = world.folder.path().join("repository");
    std::fs::create_dir_all(folder.join(".git")).unwrap();
    std::fs::write(folder.join("bastion.toml"), text).unwrap();
    std::fs::canonicalize(folder).unwrap()
}

fn in_folder(world: &World, folder: &Path, arguments: &[&str]) -> Command {
    let mut command = bastion(world, "alice", arguments);
    command.current_dir(folder);
    command
}

async fn up(world: &World, folder: &Path) -> (i32, String, String) {
    let mut up = in_folder(world, folder, &["up", "demo"]);
    up.args(ports());
    finish(up).await
}

#[tokio::test]
async fn a_repository_does_not_decide_where_a_person_is_sent_unless_they_trust_it() {
    let world = World::start().await;
    let folder = repository(&world, HIJACK);
    let file = folder.join("bastion.toml").display().to_string();
    let (code, out, err) = up(&world, &folder).await;
    assert_eq!((code, out.as_str()), (64, ""), "{err}");
    for part in [
        &format!("{file} is not trusted, and it decides where bastion demo sends you"),
        "env.demo.access.read.task_definition = \"bastion-demo-write\"",
        &format!("bastion trust {file}"),
        &format!("BASTION_TRUST={}", sha256(HIJACK)),
    ] {
        assert!(err.contains(part), "{part} is not in {err}");
    }
    assert!(world.sandbox.tasks().is_empty());

    let (code, out, err) = finish(in_folder(&world, &folder, &["trust"])).await;
    assert_eq!((code, out.as_str()), (0, "env.demo.access.read.task_definition = \"bastion-demo-write\""), "{err}");
    // It is shown what is overridden, and the relay of another access level is found out all the same.
    let (code, _, err) = up(&world, &folder).await;
    assert_eq!(code, 64, "{err}");
    for part in [
        &format!("! {file} overrides access.read.task_definition of the deployed environment"),
        "that of environment \"demo\" with access level \"write\", and you asked for \"demo\" with \"read\"",
        &format!("decided by access.read.task_definition in {file}"),
    ] {
        assert!(err.contains(part), "{part} is not in {err}");
    }
    assert_eq!(running(&world), 0);
    world.stop().await;
}

#[tokio::test]
async fn trust_is_for_one_text_and_can_be_taken_back() {
    let world = World::start().await;
    let folder = repository(&world, ODD);
    let said = async |arguments: &[&str]| finish(in_folder(&world, &folder, arguments)).await;
    let (code, out, err) = said(&["trust", "--json"]).await;
    let trusted: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, &trusted["trusted"]), (0, &Value::Bool(true)), "{err}");
    let decides: Vec<&str> = trusted["decides"].as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(decides, ["env.demo.access.read.assign_public_ip", "env.demo.access.read.subnets"]);
    let mut command = in_folder(&world, &folder, &["up", "demo", "--json"]);
    command.args(ports());
    let up_with_it = Up::of(command).await;
    let warnings: Vec<&str> = up_with_it.events.iter().filter_map(|event| event["message"].as_str()).collect();
    for part in [
        "overrides access.read.subnets of the deployed environment",
        "adds access.read.assign_public_ip to the deployed environment",
        "adds lanes to the deployed environment",
    ] {
        assert!(warnings.iter().any(|warning| warning.contains(part)), "{part} is not in {warnings:?}");
    }
    assert_eq!(up_with_it.end().await.0, Some(0));

    let list = world.folder.path().join(".local/state/bastion/trusted.json");
    assert!(std::fs::read_to_string(&list).unwrap().contains(trusted["sha256"].as_str().unwrap()));
    let (_, out, _) = said(&["trust", "--list"]).await;
    assert!(out.starts_with(trusted["sha256"].as_str().unwrap()) && out.ends_with("/bastion.toml"), "{out}");
    repository(&world, &format!("{ODD}security_groups = []\n"));
    assert!(up(&world, &folder).await.2.contains("is not trusted"));
    repository(&world, ODD);
    let (code, out, _) = said(&["trust", "--revoke", "--json"]).await;
    assert!(code == 0 && out.contains("\"trusted\":false"), "{out}");
    assert_eq!(up(&world, &folder).await.0, 64);
    assert_eq!(said(&["trust", "--list"]).await.1, "");
    // What decides nothing needs none, and CI names the text.
    repository(&world, "[env.demo]\nlanes = 2\n");
    assert_eq!(said(&["status", "demo"]).await.0, 0);
    repository(&world, ODD);
    let with_variable = async |value: String| {
        let mut status = in_folder(&world, &folder, &["status", "demo"]);
        status.env("BASTION_TRUST", value);
        finish(status).await.0
    };
    assert_eq!(with_variable(format!("0000,{}", sha256(ODD))).await, 0);
    assert_eq!(with_variable("1 true * yes".to_owned()).await, 64);
    // An environment that only the repository knows is no other case: it would send the person somewhere just the same.
    repository(&world, &ODD.replace("demo", "elsewhere"));
    let (code, _, err) = said(&["up", "elsewhere"]).await;
    assert!(code == 64 && err.contains("decides where bastion elsewhere sends you"), "{err}");
    world.stop().await;
}

#[tokio::test]
async fn a_client_of_another_user_of_the_machine_is_refused_and_told_of() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can be another user");
        return;
    }
    let world = World::start().await;
    let local_ports = ports();
    let arguments: Vec<&str> = local_ports.iter().map(String::as_str).collect();
    // The person is a user as any other; `another` is one more.
    let (person, another) = (65_533, 65_534);
    let home = world.folder.path().join("home");
    std::fs::create_dir(&home).unwrap();
    std::os::unix::fs::chown(&home, Some(person), None).unwrap();
    let mut command = bastion(&world, "alice", &["up", "demo", "--json"]);
    command.args(&arguments).env("HOME", &home).current_dir("/").uid(person).stderr(Stdio::piped());
    let mut up = Up::of(command).await;
    let port = up.port("orders").to_string();
    let psql = async |user: u32| {
        let mut psql = Command::new("psql");
        psql.args(["-X", "-A", "-t", "-w", "-h", "localhost", "-U", "x", "-p", &port, "-c", "select 1"]);
        psql.uid(user).env("PGCONNECT_TIMEOUT", "20").env("HOME", "/").current_dir("/");
        finish(psql).await
    };
    assert_eq!(psql(person).await.1, "1");
    // What forwards ports often runs as root.
    assert_eq!(psql(0).await.1, "1");
    let (code, _, err) = psql(another).await;
    assert!(code == 2 && err.contains("server closed the connection unexpectedly"), "{err}");
    let said = up.event(|event| event["event"] == "warning").await;
    let line = said["message"].as_str().unwrap();
    assert!(line.contains("a connection to orders was refused: it came from user 65534 of this machine"), "{line}");
    assert_eq!(psql(person).await.1, "1");
    let ended = tokio::time::timeout(PATIENCE, up.end()).await.unwrap();
    assert_eq!(ended.0, Some(0));
    world.stop().await;
}
