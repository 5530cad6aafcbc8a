//! No secret in a log, an error, an argument, the environment of a process, or a byte that crosses the tunnel.

use std::process::Stdio;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use bastion_sandbox::REGION;
use bastion_sandbox::agent::Capture;
use bastion_sandbox::postgres::Flaws;
use bastion_sandbox::vault::{SERVER_ID, Vault, VerifyIdentity};
use serde_json::{Value, json};
use tokio::process::Command;

use crate::secrets::{Secrets, login};
use crate::support::{PATIENCE, World, finish};
use crate::up::bastion;
use crate::vault::{ADMIN, Lives, login_roles, prepare};
use crate::vault_caller;

const PASSWORD: &str = "M4RK+er/of the=secret's?password";
const WRONG: &str = "M4RK+er/of a=password that&is wrong";

/// Every spelling in which `secret` might hide.
fn spellings(secret: &[u8]) -> Vec<Vec<u8>> {
    let hex: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
    let percent = |keep: fn(u8) -> bool| -> String {
        let encode = |byte: &u8| if keep(*byte) { char::from(*byte).to_string() } else { format!("%{byte:02X}") };
        secret.iter().map(encode).collect()
    };
    let unreserved = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    let mut all = vec![secret.to_vec(), hex.to_uppercase().into_bytes(), hex.into_bytes()];
    all.push(percent(unreserved).to_lowercase().into_bytes());
    all.push(percent(unreserved).into_bytes());
    all.push(percent(unreserved).replace("%20", "+").into_bytes());
    // As a JSON string and as Rust's Debug write it.
    all.push(json!(String::from_utf8_lossy(secret)).to_string().trim_matches('"').into());
    all.push(format!("{:?}", String::from_utf8_lossy(secret)).trim_matches('"').into());
    // Inside something longer base64 has three forms; the characters at both ends depend on the neighbours.
    for before in 0..3 {
        let mut padded = vec![0; before];
        padded.extend_from_slice(secret);
        padded.truncate(padded.len() / 3 * 3);
        for engine in [&STANDARD_NO_PAD, &URL_SAFE_NO_PAD] {
            let text = engine.encode(&padded);
            all.push(text.into_bytes().split_off(if before == 0 { 0 } else { 4 }));
        }
    }
    all
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

/// Fails if one of `secrets` stands in one of `places`.
fn search(secrets: &[(String, String)], places: &[(&str, Vec<u8>)]) {
    for (what, secret) in secrets {
        assert!(secret.len() >= 12, "{what} is too short to be told from chance");
        for spelling in spellings(secret.as_bytes()) {
            for (place, bytes) in places {
                assert!(!contains(bytes, &spelling), "{what} stands in {place}");
            }
        }
    }
}

fn process(pid: u32, file: &str) -> Vec<u8> {
    std::fs::read(format!("/proc/{pid}/{file}")).unwrap()
}

#[tokio::test]
async fn no_secret_leaves_its_place() {
    let folder = World::folder();
    let secrets = Secrets::start(folder.path()).await;
    secrets.create("right", login("scram_user", PASSWORD).to_string()).await;
    secrets.create("wrong", login("scram_user", WRONG).to_string()).await;
    // STS comes up later than the Vault that asks it.
    let sts: Arc<OnceLock<VerifyIdentity>> = Arc::default();
    let asked = Arc::clone(&sts);
    let verifier: VerifyIdentity = Arc::new(move |headers, body| (asked.get().unwrap())(headers, body));
    let vault = Vault::start(folder.path(), verifier, login_roles(&Lives::default())).await.unwrap();
    let capture = Arc::new(Capture::default());
    let world = World::start_in(folder, Flaws::default(), None, |config| {
        let environment = &mut config.task_definitions[0].environment;
        let mut relay: Value = serde_json::from_str(&environment["BASTION_CONFIG"]).unwrap();
        let token = relay["target"]["orders"].clone();
        let with = |credential: Value| {
            let mut target = token.clone();
            target["credential"] = credential;
            target
        };
        relay["audit"] = json!("statements");
        relay["target"] = json!({
            "token": token,
            "secret": with(json!({"secrets_manager": {"secret_id": "right"}})),
            "wrong": with(json!({"secrets_manager": {"secret_id": "wrong"}})),
            "vault": with(json!({"vault": {"address": vault.address, "role": "bastion", "creds": "database/creds/read",
                                           "server_id": SERVER_ID, "sts_region": REGION}})),
            "own": with(vault_caller::credential(&vault, "database/creds/read")),
        });
        // What is signed for Vault is what the environment names.
        let known = config.parameters.get_mut("/bastion/demo").unwrap();
        let mut document: Value = serde_json::from_str(known).unwrap();
        document["access"]["read"]["target"] = relay["target"].clone();
        *known = document.to_string();
        environment.extend([
            ("BASTION_CONFIG".to_owned(), relay.to_string()),
            ("BASTION_LOG".to_owned(), "trace".to_owned()),
            ("AWS_ENDPOINT_URL_SECRETS_MANAGER".to_owned(), secrets.moto.endpoint()),
        ]);
        config.gateway.agent.capture = Some(Arc::clone(&capture));
    })
    .await;
    assert!(sts.set(world.sandbox.identity_verifier()).is_ok());
    prepare(&vault, &world, &Lives::default()).await;
    let alice = world.config.identities.iter().find(|identity| identity.arn.ends_with("/alice")).unwrap();
    vault.person(&alice.arn, &["read"]).await.unwrap();
    let quoted = PASSWORD.replace('\'', "''");
    world.database.sql("postgres", &format!("alter role scram_user password '{quoted}'")).await.unwrap();
    world.database.sql("orders", "grant select on orders to scram_user").await.unwrap();

    // One session without compression, so that what crosses can be read.
    let files = ["up.out", "up.err"].map(|name| world.folder.path().join(name));
    let read = |index: usize| std::fs::read(&files[index]).unwrap();
    let [stdout, stderr] = files.each_ref().map(|file| std::fs::File::create(file).unwrap());
    let mut up = bastion(&world, "alice", &["up", "demo", "--json", "--lanes", "0"]);
    up.env("BASTION_LOG", "trace").stdin(Stdio::null()).stdout(stdout).stderr(stderr);
    let mut up = up.spawn().unwrap();
    let ready = async {
        loop {
            let said = String::from_utf8_lossy(&read(0)).into_owned();
            if let Some(line) = said.lines().find(|line| line.contains("\"ready\"")) {
                return serde_json::from_str::<Value>(line).unwrap();
            }
            assert!(up.try_wait().unwrap().is_none(), "{}", String::from_utf8_lossy(&read(1)));
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let ready = tokio::time::timeout(2 * PATIENCE, ready).await.expect("bastion up hangs");
    let (mut clients, mut told) = (Vec::new(), Vec::new());
    for target in ready["targets"].as_array().unwrap() {
        let name = target["name"].as_str().unwrap();
        let mut psql = Command::new("psql");
        psql.env("PGCONNECT_TIMEOUT", "20").args(["-X", "-w", "-h", "127.0.0.1", "-U", "anyone", "-d", "orders"]);
        psql.args(["-p", &target["port"].to_string(), "-c", "select customer from orders limit 3"]);
        let (code, out, err) = finish(psql).await;
        assert_eq!(code == 0, name != "wrong", "{name}: {err}");
        told.extend_from_slice(out.as_bytes());
        told.extend_from_slice(err.as_bytes());
        clients.push(name.to_owned());
    }
    assert_eq!(clients.len(), 5);

    let task = world.sandbox.tasks()[0].0.clone();
    let role = world.sandbox.task_secrets(&task);
    assert_eq!(role.len(), 2);
    let (relay_pid, up_pid) = (world.sandbox.task_pid(&task).unwrap(), up.id().unwrap());
    let caller = vec![("the caller's key".to_owned(), alice.secret_key.clone())];
    let named = |what: &str, all: Vec<String>| -> Vec<(String, String)> {
        all.into_iter().map(|secret| (what.to_owned(), secret)).collect()
    };
    let (tokens, passwords) = (vault.tokens(), vault.passwords());
    assert!(!tokens.is_empty() && !passwords.is_empty());
    let mut of_the_task = named("a secret of the task role", role);
    of_the_task.extend(named("a token of Vault", tokens));
    of_the_task.extend(named("a password of a user of Vault", passwords));
    of_the_task.extend(named("a password in a secret", vec![PASSWORD.to_owned(), WRONG.to_owned()]));
    of_the_task.push(("the password of Vault's administrator".to_owned(), ADMIN.to_owned()));
    of_the_task.push(("a minted token".to_owned(), "Action=connect".to_owned()));
    search(&of_the_task, &[("the launcher's environment", process(up_pid, "environ"))]);
    let mut places = vec![
        ("the relay's arguments", process(relay_pid, "cmdline")),
        ("the relay's environment", process(relay_pid, "environ")),
        ("the launcher's arguments", process(up_pid, "cmdline")),
    ];

    let pid = rustix::process::Pid::from_raw(i32::try_from(up_pid).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let ended = tokio::time::timeout(3 * PATIENCE, up.wait()).await.expect("bastion up does not end").unwrap();
    assert_eq!(ended.code(), Some(0), "{}", String::from_utf8_lossy(&read(1)));
    let crossed = |direction: &std::sync::Mutex<Vec<u8>>| direction.lock().unwrap().clone();
    places.extend([
        ("the log of the relay", world.sandbox.task_log(&task).into_bytes()),
        ("what the launcher prints", read(0)),
        ("the log of the launcher", read(1)),
        ("what clients are told", told),
        ("the tunnel, from the laptop", crossed(&capture.up)),
        ("the tunnel, to the laptop", crossed(&capture.down)),
    ]);
    // They hold what they should, so they would hold more.
    for (place, known) in [
        ("the log of the relay", "identity_granted"),
        ("what clients are told", "Grace Hopper"),
        ("the tunnel, from the laptop", "x-amz-date"),
        ("the tunnel, to the laptop", "Grace Hopper"),
    ] {
        let (_, bytes) = places.iter().find(|(name, _)| *name == place).unwrap();
        assert!(contains(bytes, known.as_bytes()), "{known:?} is not in {place}");
    }
    of_the_task.extend(caller);
    search(&of_the_task, &places);
    // What the caller signs for Vault crosses the tunnel, as the proof does, and stands nowhere else.
    let signatures = named("a login that was signed for Vault", vault.signatures());
    assert_eq!(signatures.len(), 2);
    places.retain(|(place, _)| !place.starts_with("the tunnel, from"));
    search(&signatures, &places);
    drop(vault);
    world.stop().await;
}

#[test]
fn a_secret_is_found_in_every_spelling() {
    let secret = "M4RK+er/of the=secret's";
    let search = |text: &str| spellings(secret.as_bytes()).iter().any(|spelling| contains(text.as_bytes(), spelling));
    for before in ["", "a", "ab", "abc"] {
        let whole = format!("{before}{secret}after");
        assert!(search(&whole) && search(&STANDARD_NO_PAD.encode(&whole)) && search(&URL_SAFE_NO_PAD.encode(&whole)));
    }
    assert!(search("00 4d34524b2b65722f6f66207468653d736563726574277300"));
    assert!(search("password=M4RK%2Ber%2Fof%20the%3Dsecret%27s&"));
    assert!(!search("nothing of it"));
}
