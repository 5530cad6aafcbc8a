//! What the launcher does with the words of a relay that is not ours, at the end of the real tunnel.

use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, Mutex};

use bastion_sandbox::postgres::Flaws;
use bastion_sandbox::{REGION, task_arn};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpListener;
use tokio::task::AbortHandle;

use crate::support::{PATIENCE, World, finish};
use crate::up::{bastion, ports, running};

/// A task whose relay is this test.
struct Fake {
    world: World,
    /// Written by the process that ECS starts in place of the relay: where its relay would listen.
    listen: PathBuf,
    /// Requests, as `GET /readyz`.
    asked: Arc<Mutex<Vec<String>>>,
}

impl Fake {
    async fn start() -> Self {
        let folder = World::folder();
        let (listen, program) = (folder.path().join("listen"), folder.path().join("relay.sh"));
        let script = format!("#!/bin/sh\necho \"$BASTION_LISTEN\" >'{}'\nexec sleep 1000\n", listen.display());
        std::fs::write(&program, script).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let world = World::start_in(folder, Flaws::default(), None, |config| config.relay = program).await;
        Self { world, listen, asked: Arc::default() }
    }

    /// Answers with `targets`, and with what `challenge` makes of the name of the task.
    async fn serve(&self, targets: Value, challenge: impl Fn(&str) -> Value + Send + 'static) -> AbortHandle {
        let (listen, asked) = (self.listen.clone(), Arc::clone(&self.asked));
        let task = async {
            loop {
                if let Some((id, _)) = self.world.sandbox.tasks().into_iter().find(|(_, status)| *status != "STOPPED") {
                    return task_arn(&id);
                }
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
        };
        let task = tokio::time::timeout(PATIENCE, task).await.unwrap();
        let serving = async move {
            let address: Ipv4Addr = loop {
                match std::fs::read_to_string(&listen).ok().and_then(|text| text.trim().parse().ok()) {
                    Some(address) => break address,
                    None => tokio::time::sleep(std::time::Duration::from_millis(10)).await,
                }
            };
            let listener = TcpListener::bind((address, 7070)).await.unwrap();
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut head = Vec::new();
                while !head.windows(4).any(|end| end == b"\r\n\r\n") && stream.read_buf(&mut head).await.unwrap() > 0 {}
                let head = String::from_utf8_lossy(&head).into_owned();
                let request = head.split(' ').take(2).collect::<Vec<_>>().join(" ");
                let body = match request.as_str() {
                    "GET /readyz" => "ready".to_owned(),
                    "GET /v1/targets" => targets.to_string(),
                    "GET /v1/authorize" => challenge(&task).to_string(),
                    _ => "{}".to_owned(),
                };
                asked.lock().unwrap().push(request);
                let answer =
                    format!("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}", body.len());
                stream.write_all(answer.as_bytes()).await.unwrap();
                drop(stream);
            }
        };
        #[expect(clippy::disallowed_methods, reason = "ends with the test")]
        tokio::spawn(serving).abort_handle()
    }

    /// `bastion up demo` to its end, against such a relay: exit code, stdout, stderr.
    async fn up(&self, targets: Value, challenge: impl Fn(&str) -> Value + Send + 'static) -> (i32, String, String) {
        let mut up = bastion(&self.world, "alice", &["up", "demo", "--lanes", "0"]);
        up.args(&ports()[..2]);
        let (ended, serving) = tokio::join!(finish(up), self.serve(targets, challenge));
        serving.abort();
        ended
    }

    fn was_asked(&self, request: &str) -> bool {
        self.asked.lock().unwrap().iter().any(|asked| asked == request)
    }
}

fn relay() -> Value {
    json!({
        "version": "9.9.9", "env": "demo", "access": "read", "identity": "required", "idle_stop_seconds": null,
        "targets": [{"name": "orders", "engine": "postgres", "host": "orders.example.com", "port": 5432, "database": "orders",
                     "db_user": "db_read", "credential": "rds_iam", "local_port": null}]
    })
}

#[tokio::test]
async fn nothing_is_signed_for_a_relay_that_puts_a_request_into_the_name_of_sts() {
    let fake = Fake::start().await;
    let vpce = |start: &str| format!("{start}.sts.{REGION}.vpce.amazonaws.com");
    let action = "Action=AssumeRole&RoleArn=arn:aws:iam::123456789012:role/Admin&RoleSessionName=x&Version=2011-06-15";
    let host = format!("{}/?{action}&z={}", vpce("vpce-0a1b"), vpce(""));
    let challenge = move |task: &str| {
        let nonce = "0".repeat(64);
        json!({"nonce": nonce, "expires_in_seconds": 60, "task": task, "region": REGION, "sts_host": host})
    };
    let (code, out, err) = fake.up(relay(), challenge).await;
    assert!(code == 1 && out.is_empty() && err.contains(&format!("which is not STS in {REGION}")), "{err}");
    assert!(fake.was_asked("GET /v1/authorize") && !fake.was_asked("POST /v1/authorize"), "{:?}", fake.asked);
    assert_eq!(running(&fake.world), 0);
    fake.world.stop().await;
}

#[tokio::test]
async fn the_relay_of_another_access_level_or_environment_is_not_even_asked_what_to_sign() {
    for (key, value, said) in [
        (
            "access",
            "write",
            "environment \"demo\" with access level \"write\", and you asked for \"demo\" with \"read\"",
        ),
        ("env", "prod", "environment \"prod\" with access level \"read\", and you asked for \"demo\" with \"read\""),
    ] {
        let fake = Fake::start().await;
        let mut other = relay();
        other[key] = json!(value);
        let (code, out, err) = fake.up(other, |_| json!({})).await;
        assert!(code == 64 && out.is_empty() && err.contains(said), "{err}");
        assert!(err.contains("decided by access.read.task_definition in SSM parameter /bastion/demo"), "{err}");
        assert!(fake.was_asked("GET /v1/targets") && !fake.was_asked("GET /v1/authorize"), "{:?}", fake.asked);
        assert_eq!(running(&fake.world), 0);
        fake.world.stop().await;
    }
}

#[tokio::test]
async fn words_of_a_relay_are_only_words_on_a_terminal_and_in_a_shell() {
    let fake = Fake::start().await;
    let mut hostile = relay();
    // An older relay, which says nothing about itself.
    for key in ["env", "access", "identity"] {
        hostile.as_object_mut().unwrap().remove(key);
    }
    hostile["version"] = json!("1\u{1b}]0;owned\u{7}\u{9b}2J");
    hostile["targets"][0]["database"] = json!("orders; touch x");
    hostile["targets"][0]["host"] = json!("h\nready: prod (write)");
    hostile["unavailable"] = json!([{"name": "events", "problem": "\u{202e}evil\r\n  command   sh evil"}]);
    let mut up = bastion(&fake.world, "alice", &["up", "demo", "--lanes", "0"]);
    up.args(&ports()[..2]).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = up.spawn().unwrap();
    let serving = fake.serve(hostile, |_| json!({})).await;
    let mut stderr = BufReader::new(child.stderr.take().unwrap()).lines();
    let mut said = String::new();
    let ready = async {
        while let Some(line) = stderr.next_line().await.unwrap() {
            said.push_str(&line);
            said.push('\n');
            if line.starts_with("ready: demo (read)") {
                return;
            }
        }
        panic!("it ended: {said}");
    };
    tokio::time::timeout(PATIENCE, ready).await.expect("bastion up hangs");
    let pid = rustix::process::Pid::from_raw(i32::try_from(child.id().unwrap()).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let output = tokio::time::timeout(PATIENCE, child.wait_with_output()).await.unwrap().unwrap();
    serving.abort();
    let card = String::from_utf8(output.stdout).unwrap();
    for text in [&said, &card] {
        let odd = text.chars().find(|c| *c != '\n' && (c.is_control() || *c == '\u{202e}'));
        assert_eq!(odd, None, "{text:?}");
    }
    assert!(said.contains("version 1\\u{1b}]0;owned\\u{7}\\u{9b}2J"), "{said}");
    assert!(said.contains("does not say which environment and access level it is for"), "{said}");
    assert!(card.contains("\n  command   psql -h localhost -p "), "{card}");
    assert!(card.contains(" -U db_read -d 'orders; touch x'\n"), "{card}");
    assert!(!card.contains("\nready:") && !card.contains("\n  command   sh"), "{card}");
    fake.world.stop().await;
}
