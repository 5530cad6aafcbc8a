//! Why an IAM login did not work: "Access denied" alone helps nobody. Most likely causes first.
//!
//! A MySQL client shows 511 bytes, so its texts are short.

use bastion_wire::error_text::ErrorText;

use crate::relay::reply::{Class, behind, error};
use crate::types::{Engine, Target};

/// The statement that lets a user log in with IAM.
pub(super) fn grant(engine: Engine, user: &str) -> String {
    match engine {
        Engine::Mysql => format!("ALTER USER '{user}' IDENTIFIED WITH AWSAuthenticationPlugin AS 'RDS'"),
        Engine::Postgres | Engine::Tcp => format!("GRANT rds_iam TO \"{user}\""),
    }
}

/// The database asks for a password where there is a token.
pub(super) fn wants_password(what: &str, target: &Target, user: &str) -> ErrorText {
    let Target { name, engine, .. } = target;
    let host = target.endpoint.host().unwrap_or("the database");
    let grant = grant(*engine, user);
    let message = format!("bastion: target {name} asks {user} for {what} instead of an IAM token");
    let (detail, hint) = match engine {
        Engine::Mysql => (
            format!(
                "{user} does not exist or does not use AWSAuthenticationPlugin, or IAM authentication is off for {host}"
            ),
            format!("As an administrator of the database: {grant}"),
        ),
        Engine::Postgres | Engine::Tcp => (
            format!(
                "The database does not use IAM for {user}. Likely causes: 1. {user} is not a member of rds_iam. 2. IAM \
                 database authentication is off for {host}."
            ),
            format!("As an administrator of the database: {grant}; then check the cluster's settings."),
        ),
    };
    error(target, Class::InvalidAuthorization, message, detail, hint)
}

/// The database does not accept the token.
pub(super) fn refused(said: &ErrorText, target: &Target, user: &str) -> ErrorText {
    let Target { name, engine, .. } = target;
    let host = target.endpoint.host().unwrap_or("the database");
    let grant = grant(*engine, user);
    let ours = format!("bastion: target {name} refused the IAM login of {user}");
    let (detail, hint) = match engine {
        Engine::Mysql => (
            String::new(),
            format!(
                "Check that 1. the task role may rds-db:connect as {user} on this database's resource id, 2. {user} is made \
                 for it ({grant}), 3. IAM authentication is on for {host}"
            ),
        ),
        Engine::Postgres | Engine::Tcp => (
            format!(
                "Likely causes: 1. the task role may not rds-db:connect as {user} on the resource id of this database \
                 (arn:aws:rds-db:REGION:ACCOUNT:dbuser:RESOURCE-ID/{user}; cluster-… for Aurora, db-… for RDS). 2. {user} \
                 does not exist or lacks rds_iam. 3. IAM database authentication is off for {host}. 4. a policy with a \
                 condition or a service control policy denies it. 5. if it comes and goes, the instance is short of \
                 memory (FreeableMemory in CloudWatch), and its checks of tokens (PAM) fail."
            ),
            format!(
                "Ask your platform team to check these in this order; as an administrator: {grant}; the database's log \
                 export iam-db-auth-error names the cause."
            ),
        ),
    };
    behind(said, target, &ours, &detail, &hint)
}

#[cfg(test)]
mod tests {
    use bastion_wire::mysql::packet::ERROR_TEXT_MAX;

    use super::*;
    use crate::types::{Address, CredentialConfig, Endpoint};

    #[test]
    fn a_mysql_client_shows_the_whole_text() {
        let user = "orders_read";
        let target = Target {
            name: "orders-reports".to_owned(),
            engine: Engine::Mysql,
            endpoint: Endpoint::Fixed(Address {
                host: "orders-reports.cluster-ro-abcdefghijkl.ap-northeast-1.rds.amazonaws.com".to_owned(),
                port: 3306,
            }),
            hostaddr: None,
            database: None,
            read_only: true,
            local_infile: false,
            max_connections: None,
            local_port: None,
            relay_port: 3306,
            credential: CredentialConfig::RdsIam { user: user.to_owned(), region: None },
        };
        let said = ErrorText {
            number: 1045,
            sqlstate: "28000".to_owned(),
            message: format!("Access denied for user '{user}'@'10.10.110.210' (using password: YES)"),
            ..ErrorText::default()
        };
        for text in [refused(&said, &target, user), wants_password("mysql_native_password", &target, user)] {
            // Joined with a full stop and a blank, and the number of the connection at the end of the hint.
            let whole = format!("{}. {} (bastion connection 1000). {}", text.message, text.hint, text.detail);
            assert!(whole.len() <= ERROR_TEXT_MAX, "{} bytes: {whole}", whole.len());
        }
    }
}
