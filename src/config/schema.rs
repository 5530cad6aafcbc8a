//! The parts of the environment schema that the relay and the launcher both read: targets and credentials.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::str::FromStr as _;

use serde_json::Value;

use crate::api;
use crate::config::problem::Problems;
use crate::config::table::{Table, nearest};
use crate::types::{Address, CredentialConfig, Endpoint, Engine, Target, TargetSpec, VaultAs, VaultConfig, is_region};

/// Longest name of an environment, access level or target; it becomes part of tags, parameter names and log lines.
const NAME_MAX: usize = 64;

/// The access level whose targets are read-only if they do not say otherwise.
const READ: &str = "read";

/// The targets of one access level, by name.
#[derive(Default)]
pub(super) struct Targets {
    pub(super) resolved: BTreeMap<String, Target>,
    /// Those whose engine only their secrets say.
    pub(super) without_engine: Vec<TargetSpec>,
}

/// Every target of `table` (`target.NAME`) of the access level `access`, with its plain port in the task decided.
pub(super) fn targets(table: &Table<'_>, access: &str, problems: &mut Problems) -> Targets {
    let mut wanted = BTreeMap::new();
    for (name, value) in table.entries() {
        if !is_name(name) {
            table.problem(problems, name, "is not a name", NAME_FIX);
        }
        if let Some(entry) = Table::new(table.source(), &table.key(name), value, problems)
            && let Some(target) = target(name, entry, access, problems)
        {
            wanted.insert(name.clone(), target);
        }
    }
    resolve(table, wanted, problems)
}

pub(super) const NAME_FIX: &str = "use 1 to 64 lower-case letters, digits, - and _, starting with a letter";

pub(super) fn is_name(text: &str) -> bool {
    text.len() <= NAME_MAX
        && text.starts_with(|c: char| c.is_ascii_lowercase())
        && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_')
}

/// One target. Where the configuration has to name the engine and does not, there is a problem.
fn target(name: &str, mut table: Table<'_>, access: &str, problems: &mut Problems) -> Option<TargetSpec> {
    // A secret of Secrets Manager may name engine, host and port itself.
    let in_secret = table.value("credential").is_some_and(|value| value.get("secrets_manager").is_some());
    let engine = engine(&mut table, in_secret, problems);
    let (host, reader_host) = hosts(&mut table, in_secret, problems);
    let wants_read_only = table.boolean("read_only", problems);
    let read_only = wants_read_only.unwrap_or_else(|| access == READ && engine != Some(Engine::Tcp));
    let host = if read_only { reader_host.or(host) } else { host };
    let local_infile = table.boolean("local_infile", problems).unwrap_or_default();
    let max_connections = table.count("max_connections", problems);
    let hostaddr = table.ip("hostaddr", problems);
    let port = port(&mut table, in_secret, engine, problems);
    let database = table.string("database", problems).map(str::to_owned);
    let local_port = table.port("local_port", problems);
    let relay_port = relay_port(&mut table, problems);
    let credential = credential(&mut table, engine, problems);
    if engine == Some(Engine::Tcp) && database.is_some() {
        table.problem(problems, "database", "has no meaning for engine \"tcp\"", "remove it");
    }
    if wants_read_only == Some(true) && (engine == Some(Engine::Tcp) || credential == Some(CredentialConfig::Client)) {
        let fix = "remove it, and give the user of the clients no right to write";
        table.problem(problems, "read_only", "cannot be kept where the relay only relays bytes", fix);
    }
    if local_infile
        && (engine.is_some_and(|engine| engine != Engine::Mysql) || credential == Some(CredentialConfig::Client))
    {
        let fix = "remove it: only MySQL has LOAD DATA LOCAL, and the relay only sees it where it logs in";
        table.problem(problems, "local_infile", "has no meaning for this target", fix);
    }
    table.finish(problems);
    let endpoint = match (host, port) {
        (Some(host), Some(port)) => Endpoint::Fixed(Address { host, port }),
        (host, port) if in_secret => Endpoint::FromSecret { host, port },
        // There is a problem already.
        _ => return None,
    };
    Some(TargetSpec {
        name: name.to_owned(),
        engine,
        endpoint,
        hostaddr,
        database,
        read_only,
        local_infile,
        max_connections,
        local_port,
        relay_port,
        credential: credential?,
    })
}

fn engine(table: &mut Table<'_>, in_secret: bool, problems: &mut Problems) -> Option<Engine> {
    let text = match in_secret {
        true => table.string("engine", problems),
        false => table.required("engine", "postgres", problems),
    }?;
    let engine = Engine::from_str(text);
    if let Err(unknown) = &engine {
        let fix = match nearest(text, Engine::NAMES) {
            Some(near) => format!("did you mean {near:?}?"),
            None => format!("use one of {}", Engine::NAMES.join(", ")),
        };
        table.problem(problems, "engine", unknown.to_string(), fix);
    }
    engine.ok()
}

/// The host, and the one in its place for sessions that only read.
fn hosts(table: &mut Table<'_>, in_secret: bool, problems: &mut Problems) -> (Option<String>, Option<String>) {
    let host = match in_secret {
        true => table.string("host", problems),
        false => table.required("host", "orders.cluster-abc123.eu-west-1.rds.amazonaws.com", problems),
    };
    let reader_host = table.string("reader_host", problems);
    for (key, text) in [("host", host), ("reader_host", reader_host)] {
        if let Some(text) = text.filter(|text| !is_host(text)) {
            table.problem(
                problems,
                key,
                format!("is {text:?}, not a host name"),
                "write the endpoint's DNS name without scheme and port",
            );
        }
    }
    (host.map(str::to_ascii_lowercase), reader_host.map(str::to_ascii_lowercase))
}

fn port(table: &mut Table<'_>, in_secret: bool, engine: Option<Engine>, problems: &mut Problems) -> Option<u16> {
    let port = table.port("port", problems);
    let port = if in_secret { port } else { port.or_else(|| engine.and_then(Engine::default_port)) };
    if port.is_none() && engine == Some(Engine::Tcp) && table.value("port").is_none() {
        table.problem(problems, "port", "is missing", "add the port: engine \"tcp\" has no usual one");
    }
    port
}

/// The plain port in the task.
fn relay_port(table: &mut Table<'_>, problems: &mut Problems) -> Option<u16> {
    let port = table.port("relay_port", problems);
    if port == Some(api::PORT) {
        let what = format!("is {}, the relay's own HTTP port", api::PORT);
        table.problem(problems, "relay_port", what, "choose another port");
    }
    port
}

fn credential(table: &mut Table<'_>, engine: Option<Engine>, problems: &mut Problems) -> Option<CredentialConfig> {
    const FIX: &str = "write credential = { rds_iam = { user = \"db_read\" } } or { secrets_manager = { secret_id = \
                       \"…\" } }, or \"client\" if clients log in themselves";
    let value = match table.value("credential") {
        Some(value) => value,
        None if engine == Some(Engine::Tcp) => return Some(CredentialConfig::Client),
        None => {
            table.problem(problems, "credential", "is missing", FIX);
            return None;
        }
    };
    let found = match value {
        Value::String(word) if word == "client" => Some(CredentialConfig::Client),
        Value::Object(kinds) if kinds.len() == 1 => {
            let mut kinds = table.table("credential", problems)?;
            let rds_iam = kinds.table("rds_iam", problems).and_then(|table| rds_iam(table, problems));
            let secret = kinds.table("secrets_manager", problems).and_then(|table| secrets_manager(table, problems));
            let vault = kinds.table("vault", problems).and_then(|table| vault(table, problems));
            kinds.finish(problems);
            rds_iam.or(secret).or(vault)
        }
        Value::Object(kinds) if kinds.len() > 1 => {
            let names: Vec<&str> = kinds.keys().map(String::as_str).collect();
            table.problem(problems, "credential", format!("names {} at once", names.join(" and ")), "keep one of them");
            None
        }
        _ => {
            table.problem(problems, "credential", "is not a credential", FIX);
            None
        }
    };
    if engine == Some(Engine::Tcp) && found.as_ref().is_some_and(|found| *found != CredentialConfig::Client) {
        table.problem(
            problems,
            "credential",
            "cannot be used with engine \"tcp\", which only relays bytes",
            "use \"client\", or engine \"postgres\" or \"mysql\"",
        );
    }
    found
}

fn rds_iam(mut table: Table<'_>, problems: &mut Problems) -> Option<CredentialConfig> {
    let user = table.required("user", "db_read", problems).map(str::to_owned);
    let region = table.string("region", problems);
    check_region(&table, "region", region, problems);
    let region = region.map(str::to_owned);
    table.finish(problems);
    Some(CredentialConfig::RdsIam { user: user?, region })
}

fn secrets_manager(mut table: Table<'_>, problems: &mut Problems) -> Option<CredentialConfig> {
    let secret_id = table.required("secret_id", "prod/orders", problems).map(str::to_owned);
    if let Some(id) = secret_id.as_ref().filter(|id| !is_secret_id(id)) {
        let fix = "write its name or ARN: letters, digits and /_+=.@!:-, for example \"prod/orders\"";
        table.problem(problems, "secret_id", format!("is {id:?}"), fix);
    }
    let region = table.string("region", problems).map(str::to_owned);
    table.finish(problems);
    Some(CredentialConfig::SecretsManager { secret_id: secret_id?, region })
}

fn vault(mut table: Table<'_>, problems: &mut Problems) -> Option<CredentialConfig> {
    let address = vault_address(&mut table, problems);
    if let Some(word) = table.string("auth", problems).filter(|word| *word != "aws") {
        table.problem(problems, "auth", format!("is {word:?}"), "this version has \"aws\" only");
    }
    let login = match table.string("login", problems) {
        None | Some("task") => VaultAs::Task,
        Some("caller") => VaultAs::Caller,
        Some(word) => {
            let fix = "write \"task\" (the task role logs in) or \"caller\" (each person logs in as themselves)";
            table.problem(problems, "login", format!("is {word:?}"), fix);
            VaultAs::Task
        }
    };
    let mount = table.string("mount", problems).unwrap_or("aws").trim_matches('/').to_owned();
    // Where people log in as themselves, Vault may choose by the name of their role of IAM.
    let role = match login {
        VaultAs::Caller => table.string("role", problems),
        VaultAs::Task => table.required("role", "bastion-read", problems),
    };
    let role = role.map(str::to_owned);
    let creds = table.required("creds", "database/creds/read", problems).map(|path| path.trim_matches('/').to_owned());
    for (key, path) in [("mount", Some(&mount)), ("creds", creds.as_ref())] {
        if let Some(path) = path.filter(|path| !is_vault_path(path)) {
            let fix = "write a path of letters, digits and -._/, for example \"database/creds/read\"";
            table.problem(problems, key, format!("is {path:?}"), fix);
        }
    }
    if let Some(role) = role.as_ref().filter(|role| !is_vault_path(role) || role.contains('/')) {
        let fix = "write the name of a role: letters, digits and -._, for example \"bastion-read\"";
        table.problem(problems, "role", format!("is {role:?}"), fix);
    }
    let mut text = |key| table.string(key, problems).map(str::to_owned);
    let (namespace, ca_file) = (text("namespace"), text("ca_file").map(PathBuf::from));
    let (server_id, sts_region) = (text("server_id"), text("sts_region"));
    if login == VaultAs::Caller && table.value("server_id").is_none() {
        let fix = "set it here and as iam_server_id_header_value of the AWS auth method: without it what a person signs for \
                   this Vault is good at every other one";
        table.problem(problems, "server_id", "is missing, and login is \"caller\"", fix);
    }
    check_header_values(&table, [("namespace", &namespace), ("server_id", &server_id)], problems);
    check_region(&table, "sts_region", sts_region.as_deref(), problems);
    table.finish(problems);
    Some(CredentialConfig::Vault(Box::new(VaultConfig {
        address: address?,
        login,
        mount,
        role,
        creds: creds?,
        namespace,
        ca_file,
        server_id,
        sts_region,
    })))
}

fn vault_address(table: &mut Table<'_>, problems: &mut Problems) -> Option<String> {
    const EXAMPLE: &str = "https://vault.example.com:8200";
    let address = table.required("address", EXAMPLE, problems).map(|url| url.trim_end_matches('/').to_owned());
    if let Some(url) = address.as_ref().filter(|url| !is_vault_address(url)) {
        let fix = format!("write https:// and a host name, for example {EXAMPLE:?}; http:// is for loopback only");
        table.problem(problems, "address", format!("is {url:?}"), fix);
    }
    address
}

fn check_header_values(table: &Table<'_>, values: [(&str, &Option<String>); 2], problems: &mut Problems) {
    for (key, value) in values {
        if let Some(value) = value.as_ref().filter(|value| !value.bytes().all(|byte| byte.is_ascii_graphic())) {
            table.problem(problems, key, format!("is {value:?}"), "write ASCII letters, digits and signs, no blanks");
        }
    }
}

/// It becomes a part of a host name.
fn check_region(table: &Table<'_>, key: &str, region: Option<&str>, problems: &mut Problems) {
    if let Some(region) = region.filter(|region| !is_region(region)) {
        table.problem(problems, key, format!("is {region:?}"), "write an AWS region, for example \"eu-west-1\"");
    }
}

/// Tokens and passwords come from there: only TLS, or a Vault agent in the same task.
fn is_vault_address(url: &str) -> bool {
    let (loopback, rest) = match (url.strip_prefix("https://"), url.strip_prefix("http://")) {
        (Some(rest), _) => (false, rest),
        (None, Some(rest)) => (true, rest),
        (None, None) => return false,
    };
    let (host, port) = rest.split_once(':').unwrap_or((rest, "8200"));
    let near = host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback());
    is_host(host) && port.parse::<u16>().is_ok_and(|port| port > 0) && (near || !loopback)
}

/// Secrets Manager API Reference, CreateSecret; `:` is in ARNs, `!` in the names of secrets that RDS manages.
fn is_secret_id(text: &str) -> bool {
    text.chars().all(|c| c.is_ascii_alphanumeric() || "/_+=.@!:-".contains(c))
}

fn is_vault_path(path: &str) -> bool {
    path.split('/').all(|part| {
        !part.is_empty()
            && part != ".."
            && part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
    })
}

/// A DNS name: letters, digits, hyphens and dots (RFC 1123).
fn is_host(text: &str) -> bool {
    text.len() <= 253
        && text.split('.').all(|label| {
            (1..=63).contains(&label.len())
                && label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_')
                && !label.starts_with('-')
                && !label.ends_with('-')
        })
}

/// Gives each target its engine and its plain port in the task: the configured one, otherwise the engine's usual port, and
/// for a second target of that engine the next free one upwards in the order of names. Those without an engine come after
/// all others, and no other one gets the port that they are configured with.
fn resolve(table: &Table<'_>, wanted: BTreeMap<String, TargetSpec>, problems: &mut Problems) -> Targets {
    let mut taken = BTreeSet::from([api::PORT]);
    for (name, target) in &wanted {
        if let Some(port) = target.relay_port
            && !taken.insert(port)
            && port != api::PORT
        {
            let key = format!("{name}.relay_port");
            table.problem(problems, &key, format!("is {port}, which another target has"), "choose another port");
        }
    }
    let mut targets = Targets::default();
    for (name, target) in wanted {
        match target.engine {
            Some(engine) => drop(targets.resolved.insert(name, target.resolve(engine, &mut taken))),
            None => targets.without_engine.push(target),
        }
    }
    targets
}
