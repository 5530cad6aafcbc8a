//! Vault logins as the caller: each person a database user by their own policy, and a new signature whenever one is needed.

use std::net::Ipv4Addr;
use std::sync::{Arc, OnceLock};

use bastion_sandbox::mariadb::{self, MariaDb};
use bastion_sandbox::postgres::Flaws;
use bastion_sandbox::vault::{SERVER_ID, Vault, VerifyIdentity};
use bastion_sandbox::{Config, REGION, sigv4};
use mysql_async::prelude::Queryable as _;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;

use crate::identity::Proof;
use crate::support::{PATIENCE, Relay, World, finish, logged, mysql_options, sandbox_program};
use crate::up::{Up, bastion};
use crate::vault::{Lives, login_roles, prepare, user, wait_until_gone, with_mariadb};

/// The credential of a target that lets people in as themselves.
pub(crate) fn credential(vault: &Vault, creds: &str) -> Value {
    json!({"vault": {"address": vault.address, "auth": "aws", "login": "caller", "role": "people", "creds": creds,
                     "server_id": SERVER_ID, "sts_region": REGION}})
}

/// `config` with these targets in the task and in the environment.
fn set_targets(config: &mut Config, targets: &Value) {
    let text = config.task_definitions[0].environment.get_mut("BASTION_CONFIG").unwrap();
    let mut relay: Value = serde_json::from_str(text).unwrap();
    relay["target"] = targets.clone();
    *text = relay.to_string();
    let text = config.parameters.get_mut("/bastion/demo").unwrap();
    let mut environment: Value = serde_json::from_str(text).unwrap();
    environment["access"]["read"]["target"] = targets.clone();
    *text = environment.to_string();
}

/// A Vault that knows people, and a world whose task has the targets `orders` and `ledger` for them, of two policies,
/// `reports` for everybody with their role of IAM, and `token` as before.
pub(crate) async fn people(lives: Lives) -> (World, Vault) {
    people_in(World::folder(), lives, None, |_| ()).await
}

/// The same in a folder with a MariaDB, which is the target `events` then, and with another change of the configuration.
pub(crate) async fn people_in(
    folder: tempfile::TempDir,
    lives: Lives,
    events: Option<&MariaDb>,
    change: impl FnOnce(&mut Config),
) -> (World, Vault) {
    // STS comes up later than the Vault that asks it.
    let sts: Arc<OnceLock<VerifyIdentity>> = Arc::default();
    let asked = Arc::clone(&sts);
    let verifier: VerifyIdentity = Arc::new(move |headers, body| (asked.get().unwrap())(headers, body));
    let vault = Vault::start(folder.path(), verifier, login_roles(&lives)).await.unwrap();
    let world = World::start_in(folder, Flaws::default(), None, |config| {
        let text = &config.task_definitions[0].environment["BASTION_CONFIG"];
        let token = serde_json::from_str::<Value>(text).unwrap()["target"]["orders"].take();
        let with = |creds: &str, local_port: u16| {
            let mut target = token.clone();
            target["credential"] = credential(&vault, creds);
            target["local_port"] = json!(local_port);
            target
        };
        let mut by_role = with("database/creds/read", 15452);
        drop(by_role["credential"]["vault"].as_object_mut().unwrap().remove("role"));
        let mut targets = json!({
            "orders": with("database/creds/read", 15432), "ledger": with("database/creds/write", 15442),
            "reports": by_role, "token": token
        });
        if let Some(events) = events {
            targets["events"] = json!({
                "engine": "mysql", "host": mariadb::HOST, "hostaddr": "127.0.0.1", "port": events.port,
                "database": "events", "credential": credential(&vault, "database/creds/events")
            });
        }
        set_targets(config, &targets);
        change(config);
    })
    .await;
    assert!(sts.set(world.sandbox.identity_verifier()).is_ok());
    prepare(&vault, &world, &lives).await;
    let read = vault.root("GET", "database/roles/read", &Value::Null).await.unwrap()["data"].take();
    vault.root("POST", "database/roles/write", &read).await.unwrap();
    for role in ["read", "write", "events"] {
        let policy = format!("path \"database/creds/{role}\" {{ capabilities = [\"read\"] }}");
        vault.root("POST", &format!("sys/policies/acl/may-{role}"), &json!({"policy": policy})).await.unwrap();
    }
    for (name, policies) in [("alice", ["may-read", "may-events"].as_slice()), ("bob", &["may-write"])] {
        let who = world.config.identities.iter().find(|identity| identity.session_name() == name).unwrap();
        vault.person(&who.arn, policies).await.unwrap();
    }
    (world, vault)
}

/// What a launcher signs as well when the relay asks for a login to Vault.
fn login(world: &World, name: &str, server_id: &str) -> Value {
    let who = world.config.identities.iter().find(|identity| identity.session_name() == name).unwrap();
    let date = sigv4::date(now());
    let headers = [
        ("content-type", "application/x-www-form-urlencoded; charset=utf-8".to_owned()),
        ("host", format!("sts.{REGION}.amazonaws.com")),
        ("x-amz-date", date.clone()),
        ("x-amz-security-token", who.session_token.clone().unwrap()),
        ("x-vault-aws-iam-server-id", server_id.to_owned()),
    ];
    let headers = headers.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    let body = b"Action=GetCallerIdentity&Version=2011-06-15";
    let request = sigv4::Request { method: "POST", path: "/", query: "", headers: &headers, body };
    let signed = "content-type;host;x-amz-date;x-amz-security-token;x-vault-aws-iam-server-id";
    let authorization = sigv4::authorization(&request, signed, "sts", REGION, who).unwrap();
    json!({"server_id": SERVER_ID, "sts_region": REGION, "authorization": authorization, "x-amz-date": date})
}

#[expect(clippy::disallowed_methods, reason = "signatures carry the time of day")]
fn now() -> std::time::SystemTime {
    std::time::SystemTime::now()
}

/// A claim with a login for the Vault; its challenge asks for that.
async fn claim(world: &World, relay: &Relay<'_>, name: &str) -> Value {
    let challenge = relay.challenge().await;
    assert_eq!(challenge["vaults"], json!([{"server_id": SERVER_ID, "sts_region": REGION}]));
    let mut claim = Proof::new(world, relay, name, &challenge).claim();
    claim["vaults"] = json!([login(world, name, SERVER_ID)]);
    claim
}

/// The token for a claim.
async fn token(relay: &Relay<'_>, claim: &Value) -> String {
    let (status, granted) = relay.authorize(claim).await;
    assert_eq!(status, 200, "{granted}");
    granted["token"].as_str().unwrap().to_owned()
}

/// psql over an upgrade with this token: what it prints or says. A refusal of the upgrade is what psql would be told.
async fn psql(relay: &Relay<'_>, token: &str, target: &str, sql: &str) -> Result<String, String> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let address = relay.address;
    let request = format!(
        "GET /v1/lane HTTP/1.1\r\nHost: bastion\r\nConnection: Upgrade\r\nUpgrade: bastion-conn/1\r\n\
         Bastion-Target: {target}\r\nAuthorization: Bearer {token}\r\n\r\n"
    );
    let carry = async {
        let (mut client, _) = listener.accept().await.unwrap();
        let mut stream = TcpStream::connect((address, 7070)).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        if !head.starts_with(b"HTTP/1.1 101") {
            let mut body = vec![0; 4096];
            let length = stream.read(&mut body).await.unwrap();
            head.extend_from_slice(&body[..length]);
            return String::from_utf8(head).unwrap();
        }
        let _ended = tokio::io::copy_bidirectional(&mut client, &mut stream).await;
        std::future::pending().await
    };
    let mut psql = Command::new("psql");
    psql.env("PGCONNECT_TIMEOUT", "20").args(["-X", "-q", "-A", "-t", "-w", "-h", "127.0.0.1", "-U", "anyone"]);
    psql.args(["-p", &port.to_string(), "-c", sql]);
    tokio::select! {
        (code, out, err) = finish(psql) => if code == 0 { Ok(out) } else { Err(err) },
        refused = carry => Err(refused),
    }
}

#[tokio::test]
async fn two_people_get_users_by_their_own_policies_through_one_task() {
    let (world, vault) = people(Lives::default()).await;
    let relay = world
        .task_of_alice(|config| config["allow"] = json!(["arn:aws:sts::123456789012:assumed-role/Developer/b*"]))
        .await;
    let targets = relay.get("/v1/targets").await.unwrap();
    assert!(targets.contains("\"login\":\"caller\""), "{targets}");
    let alice = token(&relay, &claim(&world, &relay, "alice").await).await;
    let bob = token(&relay, &claim(&world, &relay, "bob").await).await;
    let who = "select current_user || ' ' || current_setting('application_name')";
    let hers = psql(&relay, &alice, "orders", who).await.unwrap();
    let his = psql(&relay, &bob, "ledger", who).await.unwrap();
    for (said, name) in [(&hers, "alice"), (&his, "bob")] {
        assert!(said.starts_with("v-") && said.ends_with(&format!(" bastion:{name} psql")), "{said}");
    }
    // Each is refused what the other may, by Vault, and hears why; a moment later without another login.
    let logins = vault.tokens().len();
    for (token, target, path) in [(&alice, "ledger", "database/creds/write"), (&bob, "orders", "database/creds/read")] {
        for _ in 0..2 {
            let said = psql(&relay, token, target, "select 1").await.unwrap_err();
            let known = format!("the token of the login may not read {path}");
            assert!(said.contains(&known) && said.contains("a policy with capability read"), "{said}");
        }
    }
    assert_eq!(vault.tokens().len(), logins + 2);
    // Without a role in the configuration Vault takes the one that is named as theirs of IAM.
    let reports = psql(&relay, &bob, "reports", "select current_user").await.unwrap();
    assert!(reports.starts_with("v-"), "{reports}");
    // That has hurt nobody: users are there, and shared by the connections of their person only.
    let user_of = |said: &str| said.split(' ').next().unwrap().to_owned();
    let again = psql(&relay, &alice, "orders", "select current_user").await.unwrap();
    assert_eq!(again, user_of(&hers));
    assert_ne!(user_of(&hers), user_of(&his));
    let log = relay.log();
    for (event, name, part) in [
        ("identity_granted", "alice", format!("\"vaults\":[\"{SERVER_ID}\"]")),
        ("connection_opened", "alice", format!("\"db_user\":\"{}\"", user_of(&hers))),
        ("connection_opened", "bob", format!("\"db_user\":\"{}\"", user_of(&his))),
        ("connection_refused", "bob", "may not read database/creds/read".to_owned()),
    ] {
        let is = |line: &str| {
            let parts = [&format!("\"event\":\"{event}\""), &format!("\"session_name\":\"{name}\""), &part];
            parts.iter().all(|part| line.contains(part.as_str()))
        };
        // A refusal's record has the person too.
        assert!(log.lines().any(is), "no {event} of {name} with {part} in {log}");
    }
    for secret in vault.signatures().iter().chain(&vault.tokens()) {
        assert!(!log.contains(secret), "{secret} is in the log");
    }
    world.sandbox.stop_directly(&relay.id);
    wait_until_gone(&world, &user_of(&hers)).await;
    wait_until_gone(&world, &user_of(&his)).await;
    drop((relay, vault));
    world.stop().await;
}

#[tokio::test]
async fn logins_that_were_altered_or_are_for_another_vault_or_of_another_person_do_nothing() {
    let (world, vault) = people(Lives::default()).await;
    let relay = world
        .task_of_alice(|config| config["allow"] = json!(["arn:aws:sts::123456789012:assumed-role/Developer/b*"]))
        .await;
    // The relay sees what is not for it or not of this person.
    let refused = async |change: &dyn Fn(&mut Value), part: &str| {
        let mut claim = claim(&world, &relay, "alice").await;
        change(&mut claim["vaults"]);
        let (status, said) = relay.authorize(&claim).await;
        assert!(status == 400 && said["error"].as_str().unwrap().contains(part), "{status} {said}");
    };
    let his = login(&world, "bob", SERVER_ID);
    let good = login(&world, "alice", SERVER_ID);
    refused(&|vaults| vaults[0] = his.clone(), "signed with other keys than the proof").await;
    refused(&|vaults| vaults[0]["server_id"] = json!("vault.elsewhere"), "that was not asked for").await;
    refused(&|vaults| drop(vaults[0].as_object_mut().unwrap().remove("sts_region")), "that was not asked for").await;
    refused(&|vaults| *vaults = json!([good, good]), "that was not asked for").await;
    refused(&|vaults| vaults[0]["x-amz-security-token"] = json!("x"), "not the JSON of docs/identity.md").await;
    assert!(vault.signatures().is_empty());
    // What only STS can see, it tells Vault. The login is spent, and the next connection wants another proof.
    let foreign = login(&world, "alice", "vault.elsewhere");
    let mut altered = login(&world, "alice", SERVER_ID);
    let text = altered["authorization"].as_str().unwrap();
    let last = if text.ends_with('0') { "1" } else { "0" };
    altered["authorization"] = json!(format!("{}{last}", &text[..text.len() - 1]));
    for login in [foreign, altered] {
        let mut claim = claim(&world, &relay, "alice").await;
        claim["vaults"] = json!([login]);
        let token = token(&relay, &claim).await;
        let said = psql(&relay, &token, "orders", "select 1").await.unwrap_err();
        assert!(said.contains("STS did not confirm to it who has signed the login"), "{said}");
        assert_eq!(psql(&relay, &token, "token", "select current_user").await.unwrap(), "db_read");
    }
    // A whole claim again gives nothing, and a good one is not hurt by what was before.
    let claim = claim(&world, &relay, "alice").await;
    let token = token(&relay, &claim).await;
    let (status, said) = relay.authorize(&claim).await;
    assert!(status == 403 && said["error"].as_str().unwrap().contains("was used"), "{said}");
    assert!(psql(&relay, &token, "orders", "select current_user").await.unwrap().starts_with("v-"));
    drop((relay, vault));
    world.stop().await;
}

#[tokio::test]
async fn a_person_without_a_signed_login_is_told_what_to_do_and_nobody_is_not_asked() {
    let (world, vault) = people(Lives::default()).await;
    let relay = world.task_of_alice(|config| config["identity"] = json!("optional")).await;
    // Plain ports: ledger, orders, reports, token by name.
    let (code, _, err) = relay.psql(5433, &[], "select 1").await;
    for part in ["nobody has proven who they are", "Connect through bastion up or bastion connect"] {
        assert!(code == 2 && err.contains(part), "{part} is not in {err}");
    }
    assert_eq!(relay.psql(5435, &[], "select current_user").await.1, "db_read");
    // An older launcher, which knows no such logins.
    let challenge = relay.challenge().await;
    let old = token(&relay, &Proof::new(&world, &relay, "alice", &challenge).claim()).await;
    let said = psql(&relay, &old, "orders", "select 1").await.unwrap_err();
    assert!(said.starts_with("HTTP/1.1 401") && said.contains("update bastion on the laptop"), "{said}");
    assert_eq!(psql(&relay, &old, "token", "select current_user").await.unwrap(), "db_read");
    drop((relay, vault));
    world.stop().await;
}

/// How often callers have proven who they are.
fn proofs(world: &World) -> usize {
    let log = world.sandbox.task_log(&world.sandbox.tasks()[0].0);
    log.lines().filter(|line| line.contains("\"event\":\"identity_granted\"")).count()
}

async fn mysql(up: &Up, sql: &str) -> Result<String, String> {
    let options = mysql_options(Ipv4Addr::LOCALHOST, up.port("events"));
    let connect = tokio::time::timeout(PATIENCE, mysql_async::Conn::new(options)).await.expect("it hangs");
    let mut client = connect.map_err(|error| error.to_string())?;
    let answer = client.query_first(sql).await.map_err(|error| error.to_string())?;
    client.disconnect().await.unwrap();
    Ok(answer.unwrap())
}

#[tokio::test]
async fn whoever_comes_after_the_end_of_a_user_gets_another_without_noticing() {
    let folder = World::folder();
    let events = MariaDb::start(folder.path(), &sandbox_program(), Flaws::default()).await.unwrap();
    let lives = || Lives { lease: 120, ..Lives::default() };
    let (world, mut vault) = people_in(folder, lives(), Some(&events), |_| ()).await;
    with_mariadb(&vault, &events, lives()).await;
    let up = Up::start(&world, &[]).await;
    assert_eq!(proofs(&world), 1);
    let name = async || up.psql("orders", "select current_user").await;
    let (code, first, err) = name().await;
    assert!(code == 0 && first.starts_with("v-"), "{err}");
    // Warm: neither STS nor Vault is asked.
    let (calls, logins) = (world.sandbox.sts_calls(), vault.tokens().len());
    assert_eq!(name().await.1, first);
    assert_eq!((world.sandbox.sts_calls(), vault.tokens().len(), proofs(&world)), (calls, logins, 1));
    // Nobody has used it for a while, and the signature was for one login.
    wait_until_gone(&world, &first).await;
    let all = tokio::join!(name(), name(), name(), name());
    for (code, user, err) in [&all.0, &all.1, &all.2, &all.3] {
        assert!(*code == 0 && *user == all.0.1 && *user != first, "{err}");
    }
    // Four came at once, and one proof was enough.
    assert_eq!(proofs(&world), 2);
    // MySQL's server speaks first; each target has a login of its own.
    let user = mysql(&up, "select substring_index(user(), '@', 1)").await.unwrap();
    assert!(user.starts_with("v-"), "{user}");
    // The database knows who is behind it.
    events.sql("mysql", "grant select on performance_schema.* to public").await.unwrap();
    let behind = "select attr_value from performance_schema.session_connect_attrs \
                  where processlist_id = connection_id() and attr_name = 'bastion_person'";
    let person = mysql(&up, behind).await.unwrap();
    assert!(person.ends_with(":assumed-role/Developer/alice"), "{person}");
    assert_eq!(proofs(&world), 2);
    // What the policy denies is told after one more proof, and not tried for ever.
    let (code, _, err) = up.psql("ledger", "select 1").await;
    assert!(code == 2 && err.contains("may not read database/creds/write"), "{err}");
    // Sealed: the clients of these targets hear it, and nobody else is hurt.
    wait_until_gone(&world, &all.0.1).await;
    vault.root("PUT", "sys/seal", &json!({})).await.unwrap();
    for _ in 0..2 {
        let (code, _, err) = name().await;
        assert!(code == 2 && err.contains("it is sealed") && err.contains("unseal"), "{err}");
    }
    // The first asked for a proof, and Vault has not decided on what was signed with it.
    assert_eq!(proofs(&world), 3);
    assert_eq!(up.psql("token", "select current_user").await.1, "db_read");
    vault.unseal().await.unwrap();
    let (code, last, err) = name().await;
    assert!(code == 0 && last.starts_with("v-"), "{err}");
    assert_eq!(proofs(&world), 3);
    // Ctrl-C stops the task, and the relay takes the user away.
    assert_eq!(up.end().await.0, Some(0));
    wait_until_gone(&world, &last).await;
    drop(vault);
    events.stop().await;
    world.stop().await;
}

#[tokio::test]
async fn at_its_maximum_a_user_is_followed_by_another_also_the_plain_way() {
    let (world, vault) = people(Lives { lease: 8, lease_max: 10, ..Lives::default() }).await;
    let up = Up::start(&world, &["--lanes", "0"]).await;
    let parameters = format!("host=127.0.0.1 port={} user=anyone", up.port("orders"));
    let (old, connection) = tokio_postgres::connect(&parameters, tokio_postgres::NoTls).await.unwrap();
    #[expect(clippy::disallowed_methods, reason = "ends with the client")]
    tokio::spawn(connection);
    let name = user(&old).await;
    logged(&world.sandbox, &world.sandbox.tasks()[0].0, "it is at its maximum").await;
    let (code, other, err) = up.psql("orders", "select current_user").await;
    assert!(code == 0 && other.starts_with("v-") && other != name, "{err}");
    assert_eq!(proofs(&world), 2);
    let closed = async { while old.simple_query("select 1").await.is_ok() {} };
    tokio::time::timeout(PATIENCE, closed).await.expect("the old connection is still open");
    // The check of the grants is a client like any other.
    let (code, out, err) = finish(bastion(&world, "alice", &["grant-sql", "demo", "orders", "--check"])).await;
    assert!(code == 0 && out.contains("orders  ok: v-"), "{out}{err}");
    assert_eq!(up.end().await.0, Some(0));
    drop(vault);
    world.stop().await;
}

#[tokio::test]
async fn nothing_is_signed_for_a_vault_that_only_the_relay_names() {
    // The task's configuration is not the environment's: somebody has changed it, or one of the two is older.
    let (world, vault) = people_in(World::folder(), Lives::default(), None, |config| {
        let text = config.task_definitions[0].environment.get_mut("BASTION_CONFIG").unwrap();
        *text = text.replace(SERVER_ID, "vault.elsewhere");
    })
    .await;
    let up = Up::start(&world, &[]).await;
    let (code, _, err) = up.psql("orders", "select 1").await;
    assert!(code == 2 && err.contains("you have not signed a login for its server id \"vault.elsewhere\""), "{err}");
    // Once more, in case that the environment was right now, and never again for this client.
    assert_eq!(proofs(&world), 2);
    assert_eq!(up.psql("token", "select current_user").await.1, "db_read");
    assert!(vault.signatures().is_empty());
    let told = |events: &[Value]| {
        let known = "asks you to sign a login to the Vault with server id \\\"vault.elsewhere\\\"";
        events.iter().filter(|event| event["event"] == "warning" && event.to_string().contains(known)).count()
    };
    assert_eq!(told(&up.events), 1, "{:?}", up.events);
    let (code, events) = up.end().await;
    assert_eq!((code, told(&events)), (Some(0), 0), "{events:?}");
    drop(vault);
    world.stop().await;
}
