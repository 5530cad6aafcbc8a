//! `task-definitions/*.json`, and those that `cdk/` makes, against the relay and the image that they run.
//! `tests/task_definitions.py` holds the files against ECS's own model.

#![cfg(feature = "relay")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test code")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

#[path = "template/mod.rs"]
mod template;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Every task definition by its file's name, with the example values in place of `${NAME}`.
fn task_definitions() -> Vec<(String, Value)> {
    let example = read("task-definitions/example.env");
    let values: BTreeMap<&str, &str> =
        example.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split_once('=')).collect();
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(root().join("task-definitions")).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "json"));
    files.sort();
    files
        .into_iter()
        .map(|file| {
            let name = file.file_name().unwrap().to_str().unwrap().to_owned();
            let mut text = std::fs::read_to_string(&file).unwrap();
            for (key, value) in &values {
                text = text.replace(&format!("${{{key}}}"), value);
            }
            assert!(!text.contains("${"), "{name}: a placeholder has no value in example.env");
            (name, serde_json::from_str(&text).unwrap())
        })
        .collect()
}

/// The container that runs the relay.
fn relay_of(definition: &Value) -> &Value {
    let containers = definition["containerDefinitions"].as_array().unwrap();
    containers.iter().find(|container| container["name"] == "bastion").expect("a container is called bastion")
}

fn relay_config(container: &Value) -> Value {
    let variables = container["environment"].as_array().unwrap();
    let variable = variables.iter().find(|variable| variable["name"] == "BASTION_CONFIG").unwrap();
    serde_json::from_str(variable["value"].as_str().unwrap()).unwrap()
}

/// What follows `instruction` in the Dockerfile's last stage.
fn dockerfile(instruction: &str) -> String {
    let text = read("Dockerfile").replace("\\\n", " ");
    let line = text.lines().rev().find(|line| line.starts_with(instruction)).unwrap();
    line[instruction.len()..].trim().to_owned()
}

#[test]
fn both_kinds_are_there() {
    let names: Vec<String> = task_definitions().into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["bastion.json", "sidecar.json"]);
}

#[test]
fn the_relay_accepts_each_environment() {
    for (name, definition) in task_definitions() {
        let variables = relay_of(&definition)["environment"].as_array().unwrap().iter();
        let said = check(variables.map(|variable| {
            (variable["name"].as_str().unwrap().to_owned(), variable["value"].as_str().unwrap().to_owned())
        }));
        assert_eq!(said, Vec::<String>::new(), "{name}");
    }
}

#[test]
fn the_relay_accepts_each_environment_that_cdk_makes() {
    let definitions = template::resources("AWS::ECS::TaskDefinition");
    assert_eq!(definitions.len(), 3);
    for (name, definition) in definitions {
        let config = template::relay_config(&definition);
        assert!(config.contains(template::REGION), "{config}");
        let said = check([("BASTION_CONFIG".to_owned(), config)]);
        assert_eq!(said, Vec::<String>::new(), "{name}");
    }
}

/// The mistakes that the relay finds in its environment.
fn check(variables: impl IntoIterator<Item = (String, String)>) -> Vec<String> {
    let mut check = Command::new(env!("CARGO_BIN_EXE_bastion"));
    let output = check.args(["relay", "--check"]).env_clear().envs(variables).output().unwrap();
    let said: Vec<String> = String::from_utf8_lossy(&output.stderr).lines().map(str::to_owned).collect();
    assert_eq!(output.status.code() == Some(0), said.is_empty(), "{said:?}");
    said
}

#[test]
fn each_relay_is_locked_down_as_the_image_expects() {
    let health = dockerfile("HEALTHCHECK");
    let health: Vec<String> = serde_json::from_str(&health[health.find('[').unwrap()..]).unwrap();
    for (name, definition) in task_definitions() {
        let relay = relay_of(&definition);
        assert_eq!(relay["user"], dockerfile("USER"), "{name}");
        assert_eq!(relay["readonlyRootFilesystem"], true, "{name}");
        assert_eq!(relay["linuxParameters"]["capabilities"], json!({"drop": ["ALL"]}), "{name}");
        // The agent of ECS Exec starts processes that somebody must wait for.
        assert_eq!(relay["linuxParameters"]["initProcessEnabled"], true, "{name}");
        // The entry point of the image is the relay, and nothing is reached from outside the task.
        for absent in ["command", "entryPoint", "portMappings", "secrets", "privileged"] {
            assert!(relay.get(absent).is_none(), "{name}: {absent}");
        }
        let command = relay["healthCheck"]["command"].as_array().unwrap();
        assert!(command[0] == "CMD" && command[1..].iter().eq(health.iter()), "{name}: {command:?}");
        // The relay drains for 24 s (src/relay/mod.rs); Fargate allows 120 s.
        assert!((26..=120).contains(&relay["stopTimeout"].as_i64().unwrap()), "{name}");
        assert_eq!(relay["logConfiguration"]["logDriver"], "awslogs", "{name}");
        // ECS's own default drops records.
        assert_eq!(relay["logConfiguration"]["options"]["mode"], "blocking", "{name}");
        assert!(relay["logConfiguration"]["options"].get("max-buffer-size").is_none(), "{name}");
        assert!(definition["taskRoleArn"] != definition["executionRoleArn"], "{name}");
    }
}

#[test]
fn a_bastion_has_the_volumes_of_the_image_and_ends_itself() {
    let (_, definition) = &task_definitions()[0];
    let relay = relay_of(definition);
    let mut mounted = Vec::new();
    for mount in relay["mountPoints"].as_array().unwrap() {
        let volume = json!({"name": mount["sourceVolume"]});
        assert!(definition["volumes"].as_array().unwrap().contains(&volume), "{mount}");
        assert_eq!(mount["readOnly"], false);
        mounted.push(mount["containerPath"].as_str().unwrap().to_owned());
    }
    let declared: Vec<String> = serde_json::from_str(&dockerfile("VOLUME")).unwrap();
    assert_eq!(mounted, declared);
    let config = relay_config(relay);
    assert!(config["idle_stop"].is_string() && config["max_age"].is_string());
    // Only the person who started the task comes in.
    assert!(config.get("identity").is_none());
}

#[test]
fn a_sidecar_lives_as_long_as_its_application_and_is_there_before_it() {
    let (_, definition) = &task_definitions()[1];
    let relay = relay_of(definition);
    let config = relay_config(relay);
    assert!(config.get("idle_stop").is_none() && config.get("max_age").is_none(), "it would take the application down");
    // An application has no person to prove.
    assert_eq!(config["identity"], "optional");
    let containers = definition["containerDefinitions"].as_array().unwrap();
    let app = containers.iter().find(|container| container["name"] == "app").unwrap();
    assert_eq!(app["dependsOn"], json!([{"containerName": "bastion", "condition": "HEALTHY"}]));
    let variable = |name: &str| {
        app["environment"].as_array().unwrap().iter().find(|variable| variable["name"] == name).unwrap()["value"]
            .clone()
    };
    assert_eq!((variable("PGHOST"), variable("PGPORT")), (json!("127.0.0.1"), json!("5432")));
}
