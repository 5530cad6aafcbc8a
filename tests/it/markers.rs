//! No secret in a log, an error, an argument, the environment of a process, or a byte that crosses the tunnel.

use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use bastion_sandbox::REGION;
use bastion_sandbox::agent::Capture;
use bastion_sandbox::mariadb::{self, MariaDb};
use bastion_sandbox::postgres::Flaws;
use bastion_sandbox::vault::{SERVER_ID, Vault, VerifyIdentity};
use serde_json::{Value, json};
use tokio::process::{Child, Command};

use crate::secrets::{Secrets, login};
use crate::support::{PATIENCE, World, finish, sandbox_program};
use crate::up::bastion;
use crate::vault::{ADMIN, Lives, login_roles, prepare};
use crate::vault_caller;

const PASSWORD: &str = "M4RK+er/of the=secret's?password";
const WRONG: &str = "M4RK+er/of a=password that&is wrong";
/// What somebody shows the relay who does not know the password of its task.
const GUESS: &str = "M4RK+er/of the=guess at&a password";

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

/// The tokens that the relay's answers on `/v1/authorize` hold.
fn granted(crossed: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(crossed);
    let after = text.split("\"token\":\"").skip(1);
    after.filter_map(|rest| rest.split_once('"').map(|(token, _)| token.to_owned())).collect()
}

/// A client of one of the launcher's targets that shows this password.
fn client(target: &Value, password: &str) -> Command {
    let port = target["port"].to_string();
    let is_mysql = target["engine"] == "mysql";
    let mut client = Command::new(if is_mysql { "mariadb" } else { "psql" });
    if is_mysql {
        client.args(["--no-defaults", "-u", "anyone", "-h", "127.0.0.1", "-P", &port, "events"]);
        client.env("MYSQL_PWD", password).args(["-e", "select actor from events.events limit 3"]);
    } else {
        client.args(["-X", "-w", "-h", "127.0.0.1", "-U", "anyone", "-d", "orders", "-p", &port]);
        client.env("PGCONNECT_TIMEOUT", "20").env("PGPASSWORD", password);
        client.args(["-c", "select customer from orders limit 3"]);
    }
    client
}

/// `bastion up` or `bastion connect` that logs everything, into files.
struct Launcher {
    child: Child,
    files: [PathBuf; 2],
}

impl Launcher {
    fn start(world: &World, command: &str, arguments: &[&str]) -> Self {
        let files = ["out", "err"].map(|name| world.folder.path().join(format!("{command}.{name}")));
        let [stdout, stderr] = files.each_ref().map(|file| std::fs::File::create(file).unwrap());
        let mut bastion = bastion(world, "alice", &[command, "demo", "--json"]);
        bastion.args(arguments).env("BASTION_LOG", "trace").stdin(Stdio::null()).stdout(stdout).stderr(stderr);
        Self { child: bastion.spawn().unwrap(), files }
    }

    fn read(&self, index: usize) -> Vec<u8> {
        std::fs::read(&self.files[index]).unwrap()
    }

    fn log(&self) -> String {
        String::from_utf8_lossy(&self.read(1)).into_owned()
    }

    async fn ready(&mut self) -> Value {
        let ready = async {
            loop {
                let said = String::from_utf8_lossy(&self.read(0)).into_owned();
                if let Some(line) = said.lines().find(|line| line.contains("\"ready\"")) {
                    return serde_json::from_str::<Value>(line).unwrap();
                }
                assert!(self.child.try_wait().unwrap().is_none(), "{}", self.log());
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(2 * PATIENCE, ready).await.expect("bastion hangs")
    }

    fn process(&self, file: &str) -> Vec<u8> {
        process(self.child.id().unwrap(), file)
    }

    async fn end(&mut self) {
        let pid = rustix::process::Pid::from_raw(i32::try_from(self.child.id().unwrap()).unwrap()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
        let ended = tokio::time::timeout(3 * PATIENCE, self.child.wait()).await.expect("bastion does not end").unwrap();
        assert_eq!(ended.code(), Some(0), "{}", self.log());
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
    secrets.create("mysql", login("native_user", mariadb::PASSWORD).to_string()).await;
    let events = MariaDb::start(folder.path(), &sandbox_program(), Flaws::default()).await.unwrap();
    // STS comes up later than the Vault that asks it.
    let sts: Arc<OnceLock<VerifyIdentity>> = Arc::default();
    let asked = Arc::clone(&sts);
    let verifier: VerifyIdentity = Arc::new(move |headers, body| (asked.get().unwrap())(headers, body));
    let vault = Vault::start(folder.path(), verifier, login_roles(&Lives::default())).await.unwrap();
    let capture = Arc::new(Capture::default());
    let world = World::start_in(folder, Flaws::default(), Some(&events), |config| {
        let environment = &mut config.task_definitions[0].environment;
        let mut relay: Value = serde_json::from_str(&environment["BASTION_CONFIG"]).unwrap();
        let token = relay["target"]["orders"].clone();
        let mysql_token = relay["target"]["events"].clone();
        let of = |target: &Value, credential: Value| {
            let mut target = target.clone();
            target["credential"] = credential;
            target
        };
        let with = |credential: Value| of(&token, credential);
        relay["audit"] = json!("statements");
        relay["local_password"] = json!(true);
        relay["target"] = json!({
            "token": token,
            "secret": with(json!({"secrets_manager": {"secret_id": "right"}})),
            "wrong": with(json!({"secrets_manager": {"secret_id": "wrong"}})),
            "vault": with(json!({"vault": {"address": vault.address, "role": "bastion", "creds": "database/creds/read",
                                           "server_id": SERVER_ID, "sts_region": REGION}})),
            "own": with(vault_caller::credential(&vault, "database/creds/read")),
            "mysql": of(&mysql_token, json!({"secrets_manager": {"secret_id": "mysql"}})),
            "mysql-token": mysql_token,
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
    events.sql("mysql", "grant select on events.* to native_user@'127.0.0.1'").await.unwrap();

    // One session without compression, so that what crosses can be read; beside it one with lanes.
    let mut up = Launcher::start(&world, "up", &["--lanes", "0"]);
    let ready = up.ready().await;
    let mut lanes = Launcher::start(&world, "connect", &[]);
    let targets = ready["targets"].as_array().unwrap();
    let local_password = targets[0]["password"].as_str().unwrap();
    let mut told = Vec::new();
    for target in targets.iter().chain(lanes.ready().await["targets"].as_array().unwrap()) {
        let name = target["name"].as_str().unwrap();
        for password in [local_password, GUESS] {
            let (code, out, err) = finish(client(target, password)).await;
            assert_eq!(code == 0, name != "wrong" && password != GUESS, "{name}: {err}");
            told.extend_from_slice(out.as_bytes());
            told.extend_from_slice(err.as_bytes());
        }
    }
    assert_eq!(targets.len(), 7);

    let task = world.sandbox.tasks()[0].0.clone();
    let role = world.sandbox.task_secrets(&task);
    assert_eq!(role.len(), 2);
    let relay_pid = world.sandbox.task_pid(&task).unwrap();
    let caller = vec![("the caller's key".to_owned(), alice.secret_key.clone())];
    let named = |what: &str, all: Vec<String>| -> Vec<(String, String)> {
        all.into_iter().map(|secret| (what.to_owned(), secret)).collect()
    };
    let (tokens, passwords) = (vault.tokens(), vault.passwords());
    assert!(!tokens.is_empty() && !passwords.is_empty());
    let mut of_the_task = named("a secret of the task role", role);
    of_the_task.extend(named("a token of Vault", tokens));
    of_the_task.extend(named("a password of a user of Vault", passwords));
    of_the_task.extend(named("a password in a secret", [PASSWORD, WRONG, mariadb::PASSWORD].map(str::to_owned).into()));
    of_the_task.push(("the password of Vault's administrator".to_owned(), ADMIN.to_owned()));
    of_the_task.push(("a minted token".to_owned(), "Action=connect".to_owned()));
    let mut places = vec![
        ("the relay's arguments", process(relay_pid, "cmdline")),
        ("the relay's environment", process(relay_pid, "environ")),
    ];
    for launcher in [&up, &lanes] {
        search(&of_the_task, &[("the launcher's environment", launcher.process("environ"))]);
        places.push(("the launcher's arguments", launcher.process("cmdline")));
    }
    for launcher in [&mut lanes, &mut up] {
        launcher.end().await;
        places.push(("the log of the launcher", launcher.read(1)));
    }
    let crossed = |direction: &std::sync::Mutex<Vec<u8>>| direction.lock().unwrap().clone();
    places.extend([
        ("the log of the relay", world.sandbox.task_log(&task).into_bytes()),
        ("what clients are told", told),
    ]);
    // What the relay makes itself crosses the tunnel to the owner of the task. The password is shown on the card, and
    // clients prove that they have it; the token comes back with every upgrade.
    let down = crossed(&capture.down);
    let tokens = granted(&down);
    assert!(tokens.len() >= 2 && tokens.iter().all(|token| contains(&crossed(&capture.up), token.as_bytes())));
    let mut own = named("a token of the relay", tokens);
    search(&own, &[("what the launcher prints", [up.read(0), lanes.read(0)].concat())]);
    own.push(("the password of the task".to_owned(), local_password.to_owned()));
    own.push(("a password that a client shows".to_owned(), GUESS.to_owned()));
    assert!(contains(&down, local_password.as_bytes()) && contains(&up.read(0), local_password.as_bytes()));
    search(&own, &places);
    search(&own[own.len() - 2..], &[("the tunnel, from the laptop", crossed(&capture.up))]);
    places.extend([
        ("what the launcher prints", [up.read(0), lanes.read(0)].concat()),
        ("the tunnel, from the laptop", crossed(&capture.up)),
        ("the tunnel, to the laptop", down),
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
    events.stop().await;
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
