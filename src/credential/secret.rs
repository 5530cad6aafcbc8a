//! The text of a database secret: JSON with the names that RDS and the rotation templates use, and the plain ones.
//!
//! Secrets that RDS manages hold `username` and `password`; the rotation templates of Secrets Manager ("JSON structure of
//! AWS Secrets Manager secrets", Secrets Manager User Guide) add `engine`, `host`, `port` and `dbname`.

use secrecy::SecretString;
use serde::Deserialize;

use crate::credential::SecretEndpoint;
use crate::types::Engine;

/// What a secret holds.
#[derive(Debug)]
pub(super) struct Login {
    pub(super) user: String,
    pub(super) password: SecretString,
    pub(super) engine: Result<Engine, NoEngine>,
    pub(super) endpoint: SecretEndpoint,
}

/// Why a secret does not say which engine its database has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoEngine {
    #[error("names no engine; those that RDS manages never do")]
    Missing,
    #[error("names an engine that bastion cannot log in to")]
    Other,
}

/// What is wrong with a secret's text. Never quotes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SecretFlaw {
    #[error("is binary, not JSON text")]
    Binary,
    #[error("has no text under \"password\"")]
    NoPassword,
    #[error("has no text under \"username\" or \"user\"")]
    NoUser,
    #[error("is not a JSON object")]
    NotJson,
    #[error("has a value of another type than text where text is expected, or a port that is not one")]
    WrongType,
}

#[derive(Deserialize)]
struct Keys {
    username: Option<String>,
    user: Option<String>,
    password: Option<SecretString>,
    engine: Option<String>,
    host: Option<String>,
    port: Option<Port>,
    dbname: Option<String>,
    database: Option<String>,
}

/// The console writes the port as text, the templates as a number.
#[derive(Deserialize)]
#[serde(untagged)]
enum Port {
    Number(u16),
    Text(String),
}

/// # Errors
/// [`SecretFlaw`]: what is missing or of the wrong type.
pub(super) fn parse(text: &str) -> Result<Login, SecretFlaw> {
    if !text.trim_start().starts_with('{') {
        return Err(SecretFlaw::NotJson);
    }
    // The messages of serde_json may quote values, so only the kind of the error is used.
    let keys: Keys = serde_json::from_str(text).map_err(|error| match error.classify() {
        serde_json::error::Category::Data => SecretFlaw::WrongType,
        _ => SecretFlaw::NotJson,
    })?;
    let filled = |value: Option<String>| value.filter(|value| !value.is_empty());
    let port = match keys.port {
        None => None,
        Some(Port::Number(port)) => Some(port),
        Some(Port::Text(text)) if text.is_empty() => None,
        Some(Port::Text(text)) => Some(text.trim().parse().map_err(|_| SecretFlaw::WrongType)?),
    };
    if port == Some(0) {
        return Err(SecretFlaw::WrongType);
    }
    Ok(Login {
        user: filled(keys.username).or_else(|| filled(keys.user)).ok_or(SecretFlaw::NoUser)?,
        password: keys.password.ok_or(SecretFlaw::NoPassword)?,
        engine: filled(keys.engine).map_or(Err(NoEngine::Missing), |name| engine(&name).ok_or(NoEngine::Other)),
        endpoint: SecretEndpoint {
            engine: None,
            host: filled(keys.host).map(|host| host.to_ascii_lowercase()),
            port,
            database: filled(keys.dbname).or_else(|| filled(keys.database)),
        },
    })
}

/// The engines that RDS and the templates name.
fn engine(name: &str) -> Option<Engine> {
    match name {
        "aurora-postgresql" | "postgres" | "postgresql" => Some(Engine::Postgres),
        "aurora" | "aurora-mysql" | "mariadb" | "mysql" => Some(Engine::Mysql),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret as _;

    use super::*;

    #[test]
    fn the_json_of_rds_the_templates_and_plain_keys_are_read() {
        let managed = parse(r#"{"username":"postgres","password":"p!"}"#).unwrap();
        assert_eq!((managed.user.as_str(), managed.endpoint), ("postgres", SecretEndpoint::default()));
        assert_eq!(managed.engine, Err(NoEngine::Missing));
        for (engine, said) in [("", NoEngine::Missing), ("oracle-ee", NoEngine::Other), ("tcp", NoEngine::Other)] {
            let text = format!(r#"{{"username":"u","password":"p","engine":"{engine}"}}"#);
            assert_eq!(parse(&text).unwrap().engine, Err(said));
        }
        let template = r#"{"engine":"aurora-postgresql","host":"Orders.cluster-x.rds.amazonaws.com","username":"app",
            "password":"s\"3","dbname":"orders","port":5433,"masterarn":"arn:aws:…","dbClusterIdentifier":"orders"}"#;
        let template = parse(template).unwrap();
        assert_eq!(template.password.expose_secret(), "s\"3");
        assert_eq!(template.engine, Ok(Engine::Postgres));
        let endpoint = SecretEndpoint {
            engine: None,
            host: Some("orders.cluster-x.rds.amazonaws.com".to_owned()),
            port: Some(5433),
            database: Some("orders".to_owned()),
        };
        assert_eq!(template.endpoint, endpoint);
        let plain =
            r#"{"user":"u","password":"","host":"","port":"3306","database":"d","engine":"mariadb","dbname":""}"#;
        let plain = parse(plain).unwrap();
        assert_eq!((plain.endpoint.host, plain.endpoint.port, plain.engine), (None, Some(3306), Ok(Engine::Mysql)));
        assert_eq!(plain.endpoint.database.as_deref(), Some("d"));
        // Both spellings at once happen in secrets that people have kept for long.
        assert_eq!(parse(r#"{"username":"a","user":"b","password":"p"}"#).unwrap().user, "a");
    }

    #[test]
    fn what_is_wrong_is_named_and_never_quoted() {
        for (text, flaw) in [
            ("S3CRET", SecretFlaw::NotJson),
            ("", SecretFlaw::NotJson),
            ("[\"S3CRET\"]", SecretFlaw::NotJson),
            (r#"{"username":"u","password":"S3CRET""#, SecretFlaw::NotJson),
            (r#"{"password":"S3CRET"}"#, SecretFlaw::NoUser),
            (r#"{"username":"","password":"S3CRET"}"#, SecretFlaw::NoUser),
            (r#"{"username":"u","pass":"S3CRET"}"#, SecretFlaw::NoPassword),
            (r#"{"username":"u","password":53}"#, SecretFlaw::WrongType),
            (r#"{"username":"u","password":"S3CRET","port":"no"}"#, SecretFlaw::WrongType),
            (r#"{"username":"u","password":"S3CRET","port":0}"#, SecretFlaw::WrongType),
            (r#"{"username":"u","password":"S3CRET","port":70000}"#, SecretFlaw::WrongType),
        ] {
            let found = parse(text).unwrap_err();
            assert_eq!(found, flaw, "{text}");
            assert!(!found.to_string().contains("S3CRET"));
        }
        assert!(!format!("{:?}", parse(r#"{"username":"u","password":"S3CRET"}"#).unwrap()).contains("S3CRET"));
    }
}
