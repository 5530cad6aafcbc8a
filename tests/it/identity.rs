//! The proof of identity against the relay in a task, with a strict STS behind it.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use bastion_sandbox::iam::Identity;
use bastion_sandbox::{REGION, sigv4, task_arn};
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::{PATIENCE, Relay, World, http};

const BODY: &str = "Action=GetCallerIdentity&Version=2011-06-15";
const SIGNED: &str = "content-type;host;x-amz-date;x-amz-security-token;x-bastion-nonce;x-bastion-task";

impl World {
    /// A task that alice has started.
    pub(crate) async fn task_of_alice(&self, change: impl FnOnce(&mut Value)) -> Relay<'_> {
        let mut definition = self.definition(change);
        definition.environment.insert("BASTION_OWNER".to_owned(), self.person("alice").arn);
        self.relay_of(&definition).await
    }

    fn person(&self, name: &str) -> Identity {
        self.config.identities.iter().find(|identity| identity.session_name() == name).unwrap().clone()
    }
}

/// What a launcher would sign, to be changed before it is.
pub(crate) struct Proof {
    who: Identity,
    nonce: String,
    method: &'static str,
    body: String,
    headers: BTreeMap<String, String>,
    signed: String,
    service: &'static str,
    region: &'static str,
}

impl Proof {
    pub(crate) fn new(world: &World, relay: &Relay<'_>, name: &str, challenge: &Value) -> Self {
        let who = world.person(name);
        let text = |key: &str| challenge[key].as_str().unwrap().to_owned();
        assert_eq!((text("task"), text("region")), (task_arn(&relay.id), REGION.to_owned()));
        let headers = [
            ("content-type", "application/x-www-form-urlencoded; charset=utf-8".to_owned()),
            ("host", text("sts_host")),
            ("x-amz-date", sigv4::date(now())),
            ("x-amz-security-token", who.session_token.clone().unwrap()),
            ("x-bastion-nonce", text("nonce")),
            ("x-bastion-task", text("task")),
        ];
        let headers = headers.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        let nonce = text("nonce");
        let (method, body, signed) = ("POST", BODY.to_owned(), SIGNED.to_owned());
        Self { who, nonce, method, body, headers, signed, service: "sts", region: REGION }
    }

    pub(crate) fn claim(&self) -> Value {
        let Self { method, body, headers, .. } = self;
        let request = sigv4::Request { method, path: "/", query: "", headers, body: body.as_bytes() };
        let authorization = sigv4::authorization(&request, &self.signed, self.service, self.region, &self.who).unwrap();
        json!({"nonce": self.nonce, "sts": {
            "authorization": authorization, "x-amz-date": headers["x-amz-date"],
            "x-amz-security-token": headers["x-amz-security-token"]
        }})
    }
}

impl Relay<'_> {
    pub(crate) async fn challenge(&self) -> Value {
        serde_json::from_str(&self.get("/v1/authorize").await.unwrap()).unwrap()
    }

    pub(crate) async fn authorize(&self, claim: &Value) -> (u16, Value) {
        self.authorize_with(&claim.to_string()).await
    }

    pub(crate) async fn authorize_with(&self, body: &str) -> (u16, Value) {
        let head = "POST /v1/authorize HTTP/1.1\r\nHost: bastion\r\nConnection: close\r\nContent-Length: ";
        let (status, body) = http(self.address, &format!("{head}{}\r\n\r\n{body}", body.len())).await;
        (status, serde_json::from_str(&body).unwrap_or_default())
    }

    /// What comes to a PostgreSQL startup over an upgrade.
    async fn lane(&self, token: Option<&str>) -> String {
        let authorization = token.map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default();
        let head = "GET /v1/lane HTTP/1.1\r\nHost: bastion\r\nConnection: Upgrade\r\nUpgrade: bastion-conn/1\r\nBastion-Target: orders\r\n";
        let mut first = format!("{head}{authorization}\r\n").into_bytes();
        first.extend_from_slice(b"\0\0\0\x15\0\x03\0\0user\0anyone\0\0X\0\0\0\x04");
        let mut stream = TcpStream::connect((self.address, 7070)).await.unwrap();
        stream.write_all(&first).await.unwrap();
        let mut seen = Vec::new();
        // A refusal keeps the connection open for another request.
        while !seen.ends_with(b"}") {
            if tokio::time::timeout(PATIENCE, stream.read_buf(&mut seen)).await.unwrap().unwrap() == 0 {
                break;
            }
        }
        String::from_utf8_lossy(&seen).into_owned()
    }
}

impl Relay<'_> {
    async fn token(&self, world: &World, name: &str) -> String {
        let claim = Proof::new(world, self, name, &self.challenge().await).claim();
        let (status, granted) = self.authorize(&claim).await;
        assert_eq!(status, 200, "{granted}");
        granted["token"].as_str().unwrap().to_owned()
    }

    /// A lane of a link: the relay's answer, and the lane.
    async fn link(&self, token: &str, secret: &str, wish: &str) -> (String, TcpStream) {
        let request = format!(
            "GET /v1/lane HTTP/1.1\r\nHost: bastion\r\nConnection: Upgrade\r\nUpgrade: bastion-lane/1\r\n\
             Bastion-Link: {secret}\r\nBastion-Lane: {wish}\r\nAuthorization: Bearer {token}\r\n\r\n"
        );
        let mut stream = TcpStream::connect((self.address, 7070)).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(tokio::time::timeout(PATIENCE, stream.read_u8()).await.unwrap().unwrap());
        }
        (String::from_utf8(head).unwrap(), stream)
    }
}

#[expect(clippy::disallowed_methods, reason = "signatures carry the time of day")]
fn now() -> SystemTime {
    SystemTime::now()
}

#[tokio::test]
async fn the_local_password_is_told_to_a_proven_caller_only() {
    let world = World::start().await;
    let relay = world.task_of_alice(|config| config["local_password"] = json!(true)).await;
    let targets = relay.get("/v1/targets").await.unwrap();
    assert!(targets.contains("\"local_password\":true"), "{targets}");
    let bob = Proof::new(&world, &relay, "bob", &relay.challenge().await).claim();
    assert!(relay.authorize(&bob).await.1.get("local_password").is_none());
    let alice = Proof::new(&world, &relay, "alice", &relay.challenge().await).claim();
    let (_, granted) = relay.authorize(&alice).await;
    let password = granted["local_password"].as_str().unwrap();
    assert_eq!(password.len(), 32);
    // A token opens a lane, and the database's door on it asks all the same.
    let said = relay.lane(granted["token"].as_str()).await;
    assert!(said.starts_with("HTTP/1.1 101") && said.contains("SCRAM-SHA-256\0"), "{said}");
    assert!(!said.contains("server_version") && !relay.log().contains(password) && !targets.contains(password));
    world.stop().await;
}

#[tokio::test]
async fn two_people_one_task_and_only_its_owner_gets_in() {
    let world = World::start().await;
    let relay = world.task_of_alice(|_| ()).await;
    let before = world.sandbox.sts_calls();
    let claim = Proof::new(&world, &relay, "alice", &relay.challenge().await).claim();
    let (status, granted) = relay.authorize(&claim).await;
    assert_eq!((status, granted["arn"].as_str()), (200, Some(world.person("alice").arn.as_str())), "{granted}");
    assert_eq!(world.sandbox.sts_calls(), before + 1);
    let token = granted["token"].as_str().unwrap();
    let said = relay.lane(Some(token)).await;
    assert!(said.starts_with("HTTP/1.1 101") && said.contains("server_version"), "{said}");

    let claim = Proof::new(&world, &relay, "bob", &relay.challenge().await).claim();
    let (status, refused) = relay.authorize(&claim).await;
    let sentence = refused["error"].as_str().unwrap();
    assert_eq!(status, 403);
    assert!(sentence.contains("this task belongs to") && sentence.contains("you are"), "{sentence}");
    assert!(sentence.contains("Developer/alice") && sentence.contains("Developer/bob"), "{sentence}");
    // Nobody, a guess, and a token with something behind it.
    for token in [None, Some("0".repeat(64).as_str()), Some(&format!("{token}0"))] {
        let said = relay.lane(token).await;
        assert!(said.starts_with("HTTP/1.1 401") && said.contains("prove who you are first"), "{said}");
    }
    // Plain ports are closed where callers must say who they are.
    assert!(TcpStream::connect((relay.address, 5432)).await.is_err());
    let metrics = relay.get("/metrics").await.unwrap();
    for (outcome, count) in [("granted", 1), ("not_owner", 1), ("no_token", 3)] {
        let line = format!("bastion_relay_authorizations_total{{outcome=\"{outcome}\"}} {count}");
        assert!(metrics.contains(&line), "{line} is not in {metrics}");
    }
    let log = relay.log();
    for (event, part) in [
        ("identity_granted", "Developer/alice"),
        ("identity_refused", "Developer/bob"),
        ("connection_opened", "\"session_name\":\"alice\""),
    ] {
        let found = log.lines().any(|line| line.contains(&format!("\"event\":\"{event}\"")) && line.contains(part));
        assert!(found, "no {event} of {part} in {log}");
    }
    for secret in ["Signature=", "session-token", "Bearer", token] {
        assert!(!log.contains(secret), "{secret} is in {log}");
    }
    world.stop().await;
}

#[tokio::test]
async fn patterns_let_others_in_and_optional_identity_opens_the_plain_ports() {
    let world = World::start().await;
    let relay = world
        .task_of_alice(|config| {
            config["allow"] = json!(["arn:aws:sts::123456789012:assumed-role/Developer/b*"]);
            config["identity"] = json!("optional");
        })
        .await;
    let claim = Proof::new(&world, &relay, "bob", &relay.challenge().await).claim();
    let (status, granted) = relay.authorize(&claim).await;
    assert_eq!(status, 200, "{granted}");
    let claim = Proof::new(&world, &relay, "eve", &relay.challenge().await).claim();
    assert_eq!(relay.authorize(&claim).await.0, 403);
    // Without a token, but not with a wrong one.
    assert!(relay.lane(None).await.starts_with("HTTP/1.1 101"));
    assert!(relay.lane(Some("wrong")).await.starts_with("HTTP/1.1 401"));
    assert_eq!(relay.psql(5432, &[], "select 1").await.0, 0);
    world.stop().await;
}

#[tokio::test]
async fn a_link_is_joined_by_the_person_who_began_it_and_by_nobody_else() {
    let world = World::start().await;
    let relay = world
        .task_of_alice(|config| config["allow"] = json!(["arn:aws:sts::123456789012:assumed-role/Developer/b*"]))
        .await;
    let (alice, bob) = (relay.token(&world, "alice").await, relay.token(&world, "bob").await);
    let secret = "0123456789abcdef0123456789abcdef";
    let (answer, _first) = relay.link(&alice, secret, "new").await;
    assert!(answer.starts_with("HTTP/1.1 101"), "{answer}");
    // He may come in, and knows its number, but it is not his link.
    let (answer, _) = relay.link(&bob, secret, "join").await;
    assert!(answer.starts_with("HTTP/1.1 410"), "{answer}");
    let (answer, _) = relay.link(&bob, secret, "new").await;
    assert!(answer.starts_with("HTTP/1.1 409"), "{answer}");
    // She is known by who she is, not by the token.
    let another = relay.token(&world, "alice").await;
    assert_ne!(another, alice);
    let (answer, _second) = relay.link(&another, secret, "join").await;
    assert!(answer.starts_with("HTTP/1.1 101"), "{answer}");
    let (answer, _) = relay.link("wrong", secret, "join").await;
    assert!(answer.starts_with("HTTP/1.1 401"), "{answer}");
    for (secret, wish) in [("0123", "new"), (&"g".repeat(32), "new"), (secret, "take")] {
        let (answer, _) = relay.link(&bob, secret, wish).await;
        assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    }
    world.stop().await;
}

#[tokio::test]
async fn replayed_stale_and_foreign_claims_are_refused() {
    let world = World::start().await;
    let relay = world.task_of_alice(|_| ()).await;
    let other = world.task_of_alice(|_| ()).await;
    let proof = async |change: &dyn Fn(&mut Proof)| {
        let mut proof = Proof::new(&world, &relay, "alice", &relay.challenge().await);
        change(&mut proof);
        proof.claim()
    };
    let refused = async |claim: &Value, status: u16, part: &str| {
        let (code, said) = relay.authorize(claim).await;
        let sentence = said["error"].as_str().unwrap_or_default();
        assert!(code == status && sentence.contains(part), "{code} {said} instead of {status} {part}");
    };
    // The same claim twice, also after a mistake.
    let good = proof(&|_| ()).await;
    assert_eq!(relay.authorize(&good).await.0, 200);
    refused(&good, 403, "was used").await;
    let mut twice = proof(&|_| ()).await;
    let date = twice["sts"]["x-amz-date"].take();
    twice["sts"]["x-amz-date"] = json!("20200101T000000Z");
    refused(&twice, 400, "the day of the scope").await;
    twice["sts"]["x-amz-date"] = date;
    refused(&twice, 403, "was used").await;
    // A nonce of another relay, and one that nobody gave.
    let foreign = Proof::new(&world, &other, "alice", &other.challenge().await).claim();
    refused(&foreign, 403, "the nonce is unknown").await;
    refused(&proof(&|proof| proof.nonce = "0".repeat(64)).await, 403, "the nonce is unknown").await;
    // Good signatures for something else never reach STS, or do not survive it.
    let calls = world.sandbox.sts_calls();
    for minutes in [6, 60 * 24] {
        let stale = sigv4::date(now() - Duration::from_secs(60 * minutes));
        let set = |proof: &mut Proof| drop(proof.headers.insert("x-amz-date".to_owned(), stale.clone()));
        refused(&proof(&set).await, 403, "off the relay's clock").await;
    }
    refused(&proof(&|proof| proof.region = "us-east-1").await, 403, "for region \"us-east-1\"").await;
    refused(&proof(&|proof| proof.service = "iam").await, 400, "not that of STS").await;
    for signed in [
        SIGNED.replace("x-bastion-task", "x-bastion-nonce"),
        SIGNED.replace(";x-bastion-task", ""),
        SIGNED.replace(";x-bastion-nonce", ""),
        SIGNED.replace("host;", ""),
        SIGNED.replace("content-type;", ""),
        SIGNED.replace(";x-amz-security-token", ""),
        format!("{SIGNED};x-more"),
    ] {
        let set = |proof: &mut Proof| {
            proof.headers.insert("x-more".to_owned(), "x".to_owned());
            proof.signed = signed.clone();
        };
        refused(&proof(&set).await, 400, "SignedHeaders are not exactly").await;
    }
    assert_eq!(world.sandbox.sts_calls(), calls);
    let foreign_task = task_arn(&other.id);
    let changes: [&dyn Fn(&mut Proof); 6] = [
        &|proof| drop(proof.headers.insert("x-bastion-task".to_owned(), foreign_task.clone())),
        &|proof| drop(proof.headers.insert("x-bastion-nonce".to_owned(), "0".repeat(64))),
        &|proof| drop(proof.headers.insert("host".to_owned(), "sts.evil.example.com".to_owned())),
        &|proof| drop(proof.headers.insert("content-type".to_owned(), "text/plain".to_owned())),
        &|proof| proof.body = BODY.replace("GetCallerIdentity", "AssumeRole"),
        &|proof| proof.method = "GET",
    ];
    for change in changes {
        refused(&proof(change).await, 403, "STS refused the signature with SignatureDoesNotMatch").await;
    }
    let expired = Proof::new(&world, &relay, "carol", &relay.challenge().await).claim();
    refused(&expired, 403, "your AWS credentials have expired").await;
    world.stop().await;
}

#[tokio::test]
async fn garbage_and_size_are_refused_without_asking_sts() {
    let world = World::start().await;
    let relay = world.task_of_alice(|_| ()).await;
    let calls = world.sandbox.sts_calls();
    let good = Proof::new(&world, &relay, "alice", &relay.challenge().await).claim().to_string();
    for bad in [
        String::new(),
        "{".to_owned(),
        "[]".to_owned(),
        good.replace("\"nonce\"", "\"once\""),
        good.replace("{\"nonce\"", "{\"url\":\"http://127.0.0.1/\",\"nonce\""),
        good.replace("\"sts\":{", "\"sts\":{\"host\":\"evil\","),
        format!("{good}{}", " ".repeat(20_000)),
    ] {
        assert_eq!(relay.authorize_with(&bad).await.0, 400, "{bad}");
    }
    // The nonce was not touched by what was not a claim.
    assert_eq!(world.sandbox.sts_calls(), calls);
    assert_eq!(relay.authorize_with(&good).await.0, 200);
    world.stop().await;
}

#[tokio::test]
async fn a_task_without_an_owner_lets_nobody_in_and_says_so() {
    let world = World::start().await;
    let relay = world.relay_of(&world.definition(|_| ())).await;
    relay.wait_for("nobody can come in").await;
    let claim = Proof::new(&world, &relay, "alice", &relay.challenge().await).claim();
    let (status, refused) = relay.authorize(&claim).await;
    assert!(status == 403 && refused["error"].as_str().unwrap().contains("this task has no owner"), "{refused}");
    world.stop().await;
}

/// A change of one value of a claim: which, where, and to what.
fn alteration() -> impl Strategy<Value = (usize, prop::sample::Index, Vec<u8>, bool)> {
    (0..4_usize, any::<prop::sample::Index>(), prop::collection::vec(any::<u8>(), 0..4), any::<bool>())
}

#[tokio::test]
async fn no_alteration_of_a_value_is_accepted() {
    let world = World::start().await;
    let relay = world.task_of_alice(|_| ()).await;
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    for _ in 0..300 {
        let (which, at, with, insert) = alteration().new_tree(&mut runner).unwrap().current();
        let good = Proof::new(&world, &relay, "alice", &relay.challenge().await).claim();
        let mut claim = good.clone();
        let value = match which {
            0 => &mut claim["nonce"],
            1 => &mut claim["sts"]["authorization"],
            2 => &mut claim["sts"]["x-amz-date"],
            _ => &mut claim["sts"]["x-amz-security-token"],
        };
        let mut bytes = value.as_str().unwrap().as_bytes().to_vec();
        let at = at.index(bytes.len());
        let end = if insert { at } else { at + 1 };
        bytes.splice(at..end, with);
        *value = json!(String::from_utf8_lossy(&bytes));
        let (status, said) = relay.authorize(&claim).await;
        assert!(claim == good || (400..500).contains(&status), "{status} {said} for {claim}");
    }
    // And it still lets the owner in.
    let claim = Proof::new(&world, &relay, "alice", &relay.challenge().await).claim();
    assert_eq!(relay.authorize(&claim).await.0, 200);
    world.stop().await;
}
