//! What goes over the wire, held still: another version of bastion may be at the other end.

use serde::Serialize;
use serde_json::Value;

use super::authorize::{Audience, Challenge, Claim, Granted, Signed, VaultLogin};
use super::targets::{Relay, Target, Unavailable};
use super::*;

/// Every field is there.
fn relay() -> Relay {
    let target = Target {
        name: "orders".to_owned(),
        engine: "postgres".to_owned(),
        host: Some("orders.example.com".to_owned()),
        port: Some(5432),
        database: Some("orders".to_owned()),
        read_only: true,
        local_infile: false,
        db_user: Some("db_read".to_owned()),
        credential: "vault".to_owned(),
        login: Some("caller".to_owned()),
        problem: Some("its secret could not be read in time".to_owned()),
        relay_port: Some(5432),
        local_port: Some(15432),
        open_connections: Some(2),
    };
    Relay {
        version: "0.1.0".to_owned(),
        env: Some("prod".to_owned()),
        access: Some("read".to_owned()),
        owner: Some("arn:aws:iam::123456789012:user/alice".to_owned()),
        identity: Some("required".to_owned()),
        local_password: true,
        started_at: Some("2026-12-01T12:00:00Z".to_owned()),
        idle_stop_seconds: Some(1800),
        max_age_seconds: Some(28800),
        targets: vec![target],
        unavailable: vec![Unavailable { name: "ledger".to_owned(), problem: "its secret names no engine".to_owned() }],
    }
}

fn challenge() -> Challenge {
    Challenge {
        nonce: "n".to_owned(),
        expires_in_seconds: 60,
        task: "arn:aws:ecs:eu-west-1:123456789012:task/c/0".to_owned(),
        region: "eu-west-1".to_owned(),
        sts_host: "sts.eu-west-1.amazonaws.com".to_owned(),
        vaults: Some(vec![Audience {
            server_id: "vault.example.com".to_owned(),
            sts_region: Some("eu-west-1".to_owned()),
        }]),
    }
}

fn claim() -> Claim {
    let sts = Signed {
        authorization: "a".to_owned(),
        x_amz_date: "d".to_owned(),
        x_amz_security_token: Some("t".to_owned()),
    };
    let login = VaultLogin {
        server_id: "vault.example.com".to_owned(),
        sts_region: Some("eu-west-1".to_owned()),
        authorization: "a".to_owned(),
        x_amz_date: "d".to_owned(),
    };
    Claim { nonce: "n".to_owned(), sts, vaults: vec![login] }
}

fn granted() -> Granted {
    let arn = "arn:aws:iam::123456789012:user/alice".to_owned();
    Granted { token: "t".to_owned(), expires_in_seconds: 3600, arn, local_password: Some("p".to_owned()) }
}

fn json(value: &impl Serialize) -> String {
    serde_json::to_string_pretty(value).unwrap()
}

#[test]
fn the_interface_is_the_one_that_other_versions_know() {
    let mut lines = vec![format!("port {PORT}")];
    #[cfg(feature = "relay")]
    lines.extend([HEALTH, METRICS].map(|path| format!("GET {path}")));
    lines.push(format!("GET {READY}"));
    lines.push(format!("GET {TARGETS}\n{}", json(&relay())));
    lines.push(format!("GET {AUTHORIZE}\n{}", json(&challenge())));
    lines.push(format!("POST {AUTHORIZE}\n{}\n->\n{}", json(&claim()), json(&granted())));
    let upgrades = Upgrade::ALL.map(Upgrade::token).join(" | ");
    lines.push(format!("GET {LANE}\nupgrade: {upgrades}\n{HEADER_TARGET}: NAME"));
    lines.push(format!("{HEADER_LINK}: 32 hexadecimal digits"));
    lines.push(format!("{HEADER_LANE}: {}", LaneIntent::ALL.map(LaneIntent::as_str).join(" | ")));
    let parts = Part::ALL.map(Part::as_str).join(" | ");
    lines.push(format!("POST {LEAVE}\n{HEADER_LEAVE}: {parts}\n{}", json(&Others { others: 1, last_stops: true })));
    lines.push(format!("refusal\n{}", json(&Refusal { error: "a sentence".to_owned() })));
    insta::assert_snapshot!(lines.join("\n\n"));
}

#[test]
fn what_one_end_writes_the_other_end_reads() {
    assert_eq!(serde_json::from_str::<Relay>(&json(&relay())).unwrap(), relay());
    assert_eq!(serde_json::from_str::<Challenge>(&json(&challenge())).unwrap(), challenge());
    assert_eq!(serde_json::from_str::<Claim>(&json(&claim())).unwrap(), claim());
    assert_eq!(serde_json::from_str::<Granted>(&json(&granted())).unwrap(), granted());
}

/// The first relays said no more than this.
#[test]
fn older_relays_leave_fields_out_and_newer_ones_have_more() {
    let old = r#"{"version":"0","targets":[{"name":"orders","engine":"tcp"}]}"#;
    let known: Relay = serde_json::from_str(old).unwrap();
    assert_eq!((known.env, known.identity, known.local_password), (None, None, false));
    assert_eq!(
        (known.targets[0].port, known.targets[0].read_only, known.targets[0].login.as_deref()),
        (None, false, None)
    );
    let mut new = serde_json::to_value(relay()).unwrap();
    new["color"] = Value::from("blue");
    new["targets"][0]["color"] = Value::from("red");
    assert_eq!(serde_json::from_value::<Relay>(new).unwrap(), relay());
}
