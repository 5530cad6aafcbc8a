//! The relay's configuration: `BASTION_CONFIG` (or a file) and a few variables → [`relay::Config`].

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use serde_json::Value;

use crate::config::problem::Problems;
use crate::config::table::Table;
use crate::config::{Env, schema, vars};
use crate::relay;
use crate::tls;
use crate::types::{ExtraCa, Partition};

/// Connections at once, over all targets, if the configuration names no other number.
const MAX_CONNECTIONS: usize = 200;

/// Resolves the configuration `text`, which came from `source` (a variable or a file, as messages name it).
///
/// # Errors
/// Every mistake at once.
pub(crate) fn resolve(source: &str, text: &str, env: &impl Env) -> Result<relay::Config, Problems> {
    let mut problems = Problems::default();
    let document: Value = match serde_json::from_str(text) {
        Ok(document) => document,
        Err(error) => {
            // The error of serde_json names line and column and never quotes the text.
            problems.add(source, "", format!("is not JSON: {error}"), "correct the syntax");
            return Err(problems);
        }
    };
    let config = Table::new(source, "", &document, &mut problems).and_then(|table| root(table, env, &mut problems));
    problems.finish(config)
}

fn root(mut table: Table<'_>, env: &impl Env, problems: &mut Problems) -> Option<relay::Config> {
    let environment = table.required("env", "prod", problems).map(str::to_owned);
    let access = table.required("access", "read", problems).map(str::to_owned);
    let region = table.required("region", "eu-west-1", problems).map(str::to_owned);
    let idle_stop = table.duration("idle_stop", problems);
    let max_age = table.duration("max_age", problems);
    let max_connections = table.count("max_connections", problems).unwrap_or(MAX_CONNECTIONS);
    let extra_ca = extra_ca(&mut table, env, problems);
    let client_tls = table.table("client_tls", problems).and_then(|mut tls| {
        let certificate = tls.required("certificate_file", "/certs/tls.pem", problems).map(PathBuf::from);
        let key = tls.required("key_file", "/certs/tls.key", problems).map(PathBuf::from);
        tls.finish(problems);
        Some(relay::ClientTls { certificate: certificate?, key: key? })
    });
    let audit = audit(&mut table, problems);
    let identity = identity(&mut table, region.as_deref(), env, problems);
    let targets = match table.table("target", problems) {
        Some(targets) => schema::targets(&targets, access.as_deref().unwrap_or_default(), problems),
        None => schema::Targets::default(),
    };
    if targets.resolved.is_empty() && targets.without_engine.is_empty() && problems.is_empty() {
        table.problem(problems, "target", "names no target", "add at least one, for example target.orders");
    }
    let local_password = table.boolean("local_password", problems).unwrap_or(false);
    let listen = listen(env, problems);
    table.finish(problems);
    Some(relay::Config {
        environment: environment?,
        access: access?,
        region: region?,
        owner: env.get(vars::OWNER).filter(|owner| !owner.is_empty()),
        reason: env.get(vars::REASON).filter(|reason| !reason.is_empty()),
        audit,
        identity: identity?,
        local_password,
        listen: listen?,
        idle_stop,
        max_age,
        max_connections,
        extra_ca,
        client_tls,
        secrets_manager_endpoint: endpoint(vars::AWS_ENDPOINT_URL_SECRETS_MANAGER, env),
        targets: targets.resolved.into_values().collect(),
        without_engine: targets.without_engine,
    })
}

/// The text may be in the configuration, because the image has no place for a file.
fn extra_ca(table: &mut Table<'_>, env: &impl Env, problems: &mut Problems) -> ExtraCa {
    let file = table.string("extra_ca_file", problems).map(str::to_owned).or_else(|| env.get(vars::EXTRA_CA_FILE));
    let pem = table.text("extra_ca", problems).map(str::to_owned);
    if let Some(Err(wrong)) = pem.as_deref().map(tls::pem_certificates) {
        let fix = "write the text of a PEM file, with \\n for its line ends; for the path of a file use extra_ca_file";
        table.problem(problems, "extra_ca", wrong, fix);
    }
    ExtraCa { file: file.map(PathBuf::from), pem }
}

fn audit(table: &mut Table<'_>, problems: &mut Problems) -> relay::AuditConfig {
    let statements = match table.string("audit", problems) {
        None | Some("connections") => false,
        Some("statements") => true,
        Some(other) => {
            let fix = "write \"connections\" or \"statements\"";
            table.problem(problems, "audit", format!("is {other:?}"), fix);
            false
        }
    };
    let redact = table.boolean("redact", problems).unwrap_or(false);
    let log_hash_key = table.boolean("log_hash_key", problems).unwrap_or(false);
    if log_hash_key && !(statements && redact) {
        let fix = "leave it out, or write \"audit\": \"statements\" and \"redact\": true, whose hashes have the key";
        table.problem(problems, "log_hash_key", "has no hash to be the key of", fix);
    }
    let emf = match table.string("metrics", problems) {
        None | Some("prometheus") => false,
        Some("emf") => true,
        Some(other) => {
            let fix = "write \"prometheus\" or \"emf\"; /metrics is there in both";
            table.problem(problems, "metrics", format!("is {other:?}"), fix);
            false
        }
    };
    relay::AuditConfig { statements, redact, log_hash_key, emf }
}

/// Who may come in and how that is found out.
fn identity(
    table: &mut Table<'_>,
    region: Option<&str>,
    env: &impl Env,
    problems: &mut Problems,
) -> Option<relay::IdentityConfig> {
    let required = match table.string("identity", problems) {
        None | Some("required") => true,
        Some("optional") => false,
        Some(other) => {
            let fix = "write \"required\", or \"optional\" to open the plain ports to everybody who reaches the task";
            table.problem(problems, "identity", format!("is {other:?}"), fix);
            true
        }
    };
    let mut allow = Vec::new();
    for text in table.strings("allow", problems).unwrap_or_default() {
        match relay::Pattern::parse(&text) {
            Ok(pattern) => allow.push(pattern),
            Err(error) => table.problem(
                problems,
                "allow",
                format!("has {text:?}, which {error}"),
                "write for example \"arn:aws:sts::123456789012:assumed-role/OnCall/*\"",
            ),
        }
    }
    let configured = table.string("sts_endpoint", problems).map(|url| (table.source(), "sts_endpoint", url.to_owned()));
    let sts = match configured.or_else(|| Some((vars::STS_ENDPOINT, "", env.get(vars::STS_ENDPOINT)?))) {
        Some((source, key, url)) => {
            let endpoint = relay::HttpEndpoint::parse(&url).filter(|sts| sts.is_private() && sts.path().is_empty());
            if endpoint.is_none() {
                let fix = "write https:// and a host name, for example \"https://sts.eu-west-1.amazonaws.com\"";
                problems.add(source, key, format!("is {url:?}, not an endpoint of STS"), fix);
            }
            endpoint
        }
        None => region.and_then(|region| {
            let endpoint = relay::HttpEndpoint::parse(&format!("https://{}", Partition::endpoint("sts", region)));
            if endpoint.is_none() {
                table.problem(
                    problems,
                    "region",
                    format!("is {region:?}"),
                    "write a region, for example \"eu-west-1\"",
                );
            }
            endpoint
        }),
    };
    let task = task(env, problems);
    Some(relay::IdentityConfig { required, allow, sts: sts?, task: task? })
}

/// ECS knows better than whoever could set a variable.
fn task(env: &impl Env, problems: &mut Problems) -> Option<relay::TaskSource> {
    if let Some(url) = env.get(vars::METADATA) {
        let endpoint = relay::HttpEndpoint::parse(&url);
        if endpoint.is_none() {
            problems.add(vars::METADATA, "", format!("is {url:?}, not a URL"), "leave it as ECS sets it");
        }
        return endpoint.map(relay::TaskSource::Metadata);
    }
    match env.get(vars::TASK).filter(|name| !name.is_empty()) {
        None => Some(relay::TaskSource::Unknown),
        Some(name) if relay::is_task_name(&name) => Some(relay::TaskSource::Named(name)),
        Some(name) => {
            let fix = "use up to 512 printable characters without spaces";
            problems.add(vars::TASK, "", format!("is {name:?}, which cannot name a task"), fix);
            None
        }
    }
}

/// Where a service is asked if not at its usual place: its own variable, then the one for all services (AWS SDKs and
/// Tools Reference Guide, "Service-specific endpoints").
fn endpoint(name: &str, env: &impl Env) -> Option<String> {
    let filled = |name| env.get(name).filter(|url| !url.is_empty());
    filled(name).or_else(|| filled(vars::AWS_ENDPOINT_URL))
}

/// Only loopback: whoever reaches a port of the relay reaches the database without a password.
pub(crate) fn listen(env: &impl Env, problems: &mut Problems) -> Option<IpAddr> {
    let Some(text) = env.get(vars::LISTEN) else { return Some(IpAddr::V4(Ipv4Addr::LOCALHOST)) };
    let address = text.parse::<IpAddr>().ok().filter(IpAddr::is_loopback);
    if address.is_none() {
        problems.add(vars::LISTEN, "", format!("is {text:?}, not a loopback address"), "use 127.0.0.1 or leave it out");
    }
    address
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use super::*;
    use crate::types::{CredentialConfig, Engine, VaultAs};

    const GOOD: &str = r#"{"env":"demo","access":"read","region":"ap-northeast-1","idle_stop":"30m","max_age":"8h",
        "target":{
          "orders":{"engine":"postgres","host":"Orders.cluster-abc123.ap-northeast-1.rds.amazonaws.com","database":"orders",
                    "credential":{"rds_iam":{"user":"db_read"}}},
          "events":{"engine":"postgres","host":"events.example.com","credential":"client"},
          "cache":{"engine":"tcp","host":"cache.example.com","port":6379}}}"#;

    fn resolved(text: &str) -> Result<relay::Config, String> {
        resolve("BASTION_CONFIG", text, &BTreeMap::new()).map_err(|problems| problems.to_string())
    }

    #[test]
    fn a_good_configuration_is_resolved_whole() {
        let config = resolved(GOOD).unwrap();
        assert_eq!(config.idle_stop, Some(Duration::from_secs(1800)));
        assert_eq!(config.max_connections, MAX_CONNECTIONS);
        let ports: Vec<_> =
            config.targets.iter().map(|t| (t.name.as_str(), t.endpoint.port().unwrap(), t.relay_port)).collect();
        // Two PostgreSQL targets share a kernel in the task: the second one, by name, gets the next port.
        assert_eq!(ports, [("cache", 6379, 6379), ("events", 5432, 5432), ("orders", 5432, 5433)]);
        assert_eq!(
            config.targets[2].endpoint.host().unwrap(),
            "orders.cluster-abc123.ap-northeast-1.rds.amazonaws.com"
        );
    }

    #[test]
    fn certificate_authorities_are_text_or_a_file() {
        let with = |keys: &str| resolved(&GOOD.replacen('{', &format!("{{{keys},"), 1));
        let pem = "-----BEGIN CERTIFICATE-----\\nMAA=\\n-----END CERTIFICATE-----\\n";
        let config = with(&format!(r#""extra_ca":"{pem}","extra_ca_file":"/ca.pem""#)).unwrap();
        assert_eq!(config.extra_ca.pem, Some(pem.replace("\\n", "\n")));
        assert_eq!(config.extra_ca.file, Some(PathBuf::from("/ca.pem")));
        assert_eq!(resolved(GOOD).unwrap().extra_ca, ExtraCa::default());
        for text in ["/ca.pem", "-----BEGIN PRIVATE KEY-----\\nMAA=\\n-----END PRIVATE KEY-----"] {
            let error = with(&format!(r#""extra_ca":"{text}""#)).unwrap_err();
            assert!(error.contains("extra_ca: it holds no certificate") && error.contains("extra_ca_file"), "{error}");
        }
    }

    #[test]
    fn only_a_secret_may_say_the_engine() {
        let secret = r#""credential":{"secrets_manager":{"secret_id":"s"}}"#;
        let of = |target: &str| resolved(&GOOD.replacen("\"target\":{", &format!("\"target\":{{{target},"), 1));
        let config = of(&format!(r#""b":{{{secret},"relay_port":5434}},"a":{{{secret}}},"z":{{{secret}}}"#)).unwrap();
        let names: Vec<_> = config.without_engine.iter().map(|target| target.name.as_str()).collect();
        assert_eq!(names, ["a", "b", "z"]);
        assert!(config.without_engine[0].read_only && config.without_engine[0].endpoint.host().is_none());
        // Those with an engine have their ports as before, and nobody gets one twice.
        let ports: Vec<_> = config.targets.iter().map(|target| (target.name.as_str(), target.relay_port)).collect();
        assert_eq!(ports, [("cache", 6379), ("events", 5432), ("orders", 5433)]);
        let mut taken = std::collections::BTreeSet::from([5432, 5433, 5434]);
        let mut resolve = |n: usize, engine| config.without_engine[n].clone().resolve(engine, &mut taken).relay_port;
        let ports = [resolve(0, Engine::Postgres), resolve(1, Engine::Mysql), resolve(2, Engine::Postgres)];
        assert_eq!(ports, [5435, 5434, 5436]);
        // A port that one without an engine is configured with is nobody else's.
        let config = of(&format!(r#""a":{{{secret},"relay_port":5432}}"#)).unwrap();
        assert_eq!((config.targets[1].relay_port, config.targets[2].relay_port), (5433, 5434));
        let twice =
            of(&format!(r#""a":{{{secret},"relay_port":5440}},"b":{{{secret},"relay_port":5440}}"#)).unwrap_err();
        assert!(twice.contains("target.b.relay_port: is 5440, which another target has"), "{twice}");

        let missing = "target.a.engine: is missing; add it, for example engine = \"postgres\"";
        for credential in [r#""client""#, r#"{"rds_iam":{"user":"u"}}"#, r#"{"vault":{}}"#, "{}"] {
            let problems = of(&format!(r#""a":{{"host":"a.example.com","credential":{credential}}}"#)).unwrap_err();
            assert!(problems.contains(missing), "{problems}");
        }
        assert!(of(r#""a":{"host":"a.example.com"}"#).unwrap_err().contains(missing));
        for (engine, said) in [
            (r#""postgre""#, "is \"postgre\", not an engine"),
            (r#""""#, "is empty"),
            ("null", "is null, not text"),
            (r#""tcp""#, "credential: cannot be used with engine \"tcp\""),
        ] {
            let problems = of(&format!(r#""a":{{"engine":{engine},{secret}}}"#)).unwrap_err();
            assert!(problems.contains(said), "{said} is not in {problems}");
        }
        let alone = r#"{"env":"e","access":"a","region":"r","target":{"a":{SECRET}}}"#.replace("SECRET", secret);
        assert!(resolved(&alone).is_ok());
    }

    #[test]
    fn every_mistake_is_reported_at_once_with_key_value_and_fix() {
        let text = r#"{"env":"demo","acces":"read","region":7,"idle_stop":"30","max_age":"soon",
            "target":{"Orders":{"engine":"postgre","host":"https://x","port":70000,"credential":{"rds_ian":{"user":"u"}}},
                      "t":{"engine":"tcp","host":"t.example.com","credential":{"rds_iam":{"user":"u"},"vault":{}}}}}"#;
        let problems = resolved(text).unwrap_err();
        insta::assert_snapshot!(problems);
    }

    #[test]
    fn what_is_not_a_configuration_is_said_in_one_line() {
        for text in ["", "{", "[]", "{\"env\":1}"] {
            let problems = resolved(text).unwrap_err();
            assert!(problems.starts_with("BASTION_CONFIG"), "{problems}");
        }
    }

    #[test]
    fn a_vault_login_as_the_caller_is_for_one_vault() {
        let with = |keys: &str| {
            let vault =
                format!(r#"{{"vault":{{"address":"https://v.example.com","role":"r","creds":"d/creds/r"{keys}}}}}"#);
            resolved(&GOOD.replace(r#"{"rds_iam":{"user":"db_read"}}"#, &vault))
        };
        let vault = |keys: &str| match with(keys).unwrap().targets.remove(2).credential {
            CredentialConfig::Vault(vault) => *vault,
            other => panic!("{other:?}"),
        };
        for (keys, login) in [
            ("", VaultAs::Task),
            (r#","login":"task""#, VaultAs::Task),
            (r#","login":"caller","server_id":"v""#, VaultAs::Caller),
        ] {
            assert_eq!(vault(keys).login, login);
        }
        let problems = with(r#","login":"caller""#).unwrap_err();
        let part = "credential.vault.server_id: is missing, and login is \"caller\"; set it here and as iam_server_id_header_value";
        assert!(problems.contains(part), "{problems}");
        let problems = with(r#","login":"people""#).unwrap_err();
        assert!(
            problems.contains("login: is \"people\"; write \"task\" (the task role logs in) or \"caller\""),
            "{problems}"
        );
        // Vault may choose a role by the person's own of IAM; the task names one.
        let without_role = |login: &str| {
            let vault = format!(
                r#"{{"vault":{{"address":"https://v.example.com","creds":"d/creds/r","server_id":"v","login":"{login}"}}}}"#
            );
            resolved(&GOOD.replace(r#"{"rds_iam":{"user":"db_read"}}"#, &vault))
        };
        assert!(without_role("caller").is_ok());
        assert!(without_role("task").unwrap_err().contains("credential.vault.role: is missing"));
        // Empty is not there.
        assert!(with(r#","login":"caller","server_id":"""#).unwrap_err().contains("server_id: is empty"));
    }

    #[test]
    fn read_access_is_read_only_and_goes_to_the_reader() {
        let with_reader =
            GOOD.replace(r#""database":"orders","#, r#""database":"orders","reader_host":"Reader.example.com","#);
        let orders = |text: &str| {
            let target = resolved(text).unwrap().targets.remove(2);
            (target.read_only, target.endpoint.host().unwrap().to_owned())
        };
        assert_eq!(orders(&with_reader), (true, "reader.example.com".to_owned()));
        let write = with_reader.replace(r#""access":"read""#, r#""access":"write""#);
        assert_eq!(orders(&write), (false, "orders.cluster-abc123.ap-northeast-1.rds.amazonaws.com".to_owned()));
        let said = write.replace(r#""reader_host""#, r#""read_only":true,"reader_host""#);
        assert_eq!(orders(&said), (true, "reader.example.com".to_owned()));
        let bytes = GOOD.replace(r#""port":6379"#, r#""port":6379,"read_only":true"#);
        assert!(resolved(&bytes).unwrap_err().contains("target.cache.read_only: cannot be kept"));
    }

    #[test]
    fn identity_is_required_and_its_keys_are_checked() {
        let config = resolved(GOOD).unwrap().identity;
        assert!(config.required && config.allow.is_empty());
        assert_eq!(config.sts.authority(), "sts.ap-northeast-1.amazonaws.com");
        assert_eq!(config.task, relay::TaskSource::Unknown);
        let bad = GOOD.replacen(
            '{',
            r#"{"identity":"none","allow":["arn:aws:iam::1:role/x"],"sts_endpoint":"http://sts.example.com","#,
            1,
        );
        let problems = resolved(&bad).unwrap_err();
        for part in
            ["identity: is \"none\"; write \"required\"", "allow: has \"arn:aws:iam::1:role/x\"", "sts_endpoint: is"]
        {
            assert!(problems.contains(part), "{part} is not in {problems}");
        }
        let env = BTreeMap::from([(vars::METADATA, "http://169.254.170.2/v4/x"), (vars::TASK, "mine")]);
        let config = resolve("BASTION_CONFIG", GOOD, &env).unwrap().identity;
        // ECS knows better.
        assert!(matches!(config.task, relay::TaskSource::Metadata(_)), "{:?}", config.task);
        for (region, sts) in
            [("cn-north-1", "sts.cn-north-1.amazonaws.com.cn"), ("eusc-de-east-1", "sts.eusc-de-east-1.amazonaws.eu")]
        {
            let elsewhere = resolved(&GOOD.replace("\"ap-northeast-1\"", &format!("{region:?}"))).unwrap();
            assert_eq!(elsewhere.identity.sts.authority(), sts);
        }
    }

    #[test]
    fn the_relay_listens_on_loopback_only() {
        for bad in ["0.0.0.0", "10.0.0.1", "localhost", ""] {
            let env = BTreeMap::from([(vars::LISTEN, bad)]);
            let problems = resolve("BASTION_CONFIG", GOOD, &env).unwrap_err().to_string();
            assert!(problems.contains("not a loopback address"), "{problems}");
        }
        let env = BTreeMap::from([(vars::LISTEN, "127.77.3.9"), (vars::OWNER, "arn:aws:iam::1:user/a")]);
        let config = resolve("BASTION_CONFIG", GOOD, &env).unwrap();
        assert_eq!(config.listen.to_string(), "127.77.3.9");
        assert_eq!(config.owner.as_deref(), Some("arn:aws:iam::1:user/a"));
    }
}
