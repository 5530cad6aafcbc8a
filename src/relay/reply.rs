//! What a client is told when there is no connection: the only way text of ours reaches a client.
//!
//! Every answer names the target, says what happened and what to do next, with the connection's number for the log. It
//! is built from the relay's own enums; the text of the database is added where TLS has proven whose text it is.

use crate::credential::MintError;
use crate::relay::error::{ConnError, DialError, UpstreamTlsError, is_auth};
use crate::types::Target;
use crate::wire::proxy::{ErrorText, Refusal};

/// SQLSTATEs: PostgreSQL manual, appendix A.
const CANNOT_CONNECT: &str = "08001";
const CONNECTION_FAILURE: &str = "08006";
const PROTOCOL_VIOLATION: &str = "08P01";
const INVALID_AUTHORIZATION: &str = "28000";
const TOO_MANY_CONNECTIONS: &str = "53300";

/// What to tell the client about `failure`, or `None` where it has been told or is gone.
pub(super) fn error_text(failure: &ConnError, target: &Target, conn_id: u64) -> Option<ErrorText> {
    let mut text = text(failure, target)?;
    let number = format!("(bastion connection {conn_id})");
    text.hint = if text.hint.is_empty() { number } else { format!("{} {number}", text.hint) };
    Some(text)
}

fn error(sqlstate: &str, message: String, detail: impl Into<String>, hint: impl Into<String>) -> ErrorText {
    ErrorText { sqlstate: sqlstate.to_owned(), message, detail: detail.into(), hint: hint.into() }
}

fn text(failure: &ConnError, target: &Target) -> Option<ErrorText> {
    let Target { name, host, port, .. } = target;
    let user = target.credential.db_user().unwrap_or("the client's user");
    Some(match failure {
        ConnError::ClientIo(_) | ConnError::Refused(Refusal::ClientGone | Refusal::Rejected(_)) => return None,
        ConnError::ClientTls(reason) => error(
            PROTOCOL_VIOLATION,
            format!("bastion: TLS with the client failed: {reason}"),
            "",
            "The way to the relay is inside the tunnel already: use sslmode=prefer or sslmode=disable.",
        ),
        ConnError::Refused(Refusal::ClientMalformed(what)) => error(
            PROTOCOL_VIOLATION,
            format!("bastion: target {name} speaks PostgreSQL, but {what}"),
            "",
            "Connect with a PostgreSQL client.",
        ),
        ConnError::OpeningTimeout(seconds) => error(
            PROTOCOL_VIOLATION,
            format!("bastion: the client sent no startup packet within {seconds} s"),
            "",
            "Connect with a PostgreSQL client.",
        ),
        ConnError::Credential(reason) => credential(reason, name, user),
        ConnError::Dial(reason) => dial(reason, name, host, *port),
        ConnError::Tls(reason) => tls(reason, name, host, *port),
        ConnError::Refused(Refusal::UpstreamWithoutTls) => error(
            CANNOT_CONNECT,
            format!("bastion: target {name} at {host}:{port} does not offer TLS, so no login was sent"),
            "",
            "Check that host and port are those of an RDS or Aurora PostgreSQL endpoint.",
        ),
        ConnError::Full(limit) => error(
            TOO_MANY_CONNECTIONS,
            format!("bastion: too many connections, this relay serves {limit} at once"),
            "",
            "Close connections that are not used, or raise max_connections in the relay's configuration.",
        ),
        ConnError::LoginTimeout(seconds) => error(
            CONNECTION_FAILURE,
            format!("bastion: target {name} at {host}:{port} did not finish the login within {seconds} s"),
            "",
            "Try again; if it stays so, look at the load and the log of the database.",
        ),
        ConnError::UpstreamIo(_) | ConnError::Refused(Refusal::UpstreamGone) => error(
            CONNECTION_FAILURE,
            format!("bastion: target {name} at {host}:{port} closed the connection during the login"),
            "",
            "The database may be restarting or failing over: try again in a minute.",
        ),
        ConnError::Refused(Refusal::UpstreamMalformed(what)) => error(
            CONNECTION_FAILURE,
            format!("bastion: target {name} at {host}:{port} does not answer like PostgreSQL: {what}"),
            "",
            "Check engine, host and port of the target.",
        ),
        ConnError::Refused(Refusal::UnknownAuthentication(method)) => error(
            INVALID_AUTHORIZATION,
            format!("bastion: target {name} wants an authentication method that bastion does not speak ({method})"),
            "",
            format!("Let {user} log in with IAM (GRANT rds_iam TO {user}) or a password."),
        ),
        ConnError::Refused(Refusal::WantsPassword(what)) => error(
            INVALID_AUTHORIZATION,
            format!("bastion: target {name} asks {user} for {what} instead of an IAM token"),
            format!(
                "The database does not use IAM for {user}. Likely causes: 1. {user} is not a member of rds_iam. 2. IAM \
                 database authentication is off for {host}."
            ),
            format!(
                "As an administrator of the database: GRANT rds_iam TO \"{user}\"; then check the cluster's settings."
            ),
        ),
        ConnError::Refused(Refusal::UpstreamRefused(said)) if is_auth(&said.sqlstate) => {
            iam_refused(said, target, user)
        }
        ConnError::Refused(Refusal::UpstreamRefused(said)) => error(
            &said.sqlstate,
            format!("bastion: target {name} refused the login of {user}: {}", said.message),
            said.detail.clone(),
            said.hint.clone(),
        ),
    })
}

/// "PAM authentication failed" alone helps nobody: say what it can mean, most likely first.
fn iam_refused(said: &ErrorText, target: &Target, user: &str) -> ErrorText {
    let Target { name, host, .. } = target;
    error(
        &said.sqlstate,
        format!("bastion: target {name} refused the IAM login of {user}: {}", said.message),
        format!(
            "Likely causes: 1. the task role may not rds-db:connect as {user} on the resource id of this database \
             (arn:aws:rds-db:REGION:ACCOUNT:dbuser:RESOURCE-ID/{user}; cluster-… for Aurora, db-… for RDS). 2. {user} does \
             not exist or lacks rds_iam. 3. IAM database authentication is off for {host}. 4. a policy with a condition or \
             a service control policy denies it."
        ),
        format!(
            "Ask your platform team to check these in this order; as an administrator: GRANT rds_iam TO \"{user}\"; the \
             database's log export iam-db-auth-error names the cause."
        ),
    )
}

fn credential(reason: &MintError, name: &str, user: &str) -> ErrorText {
    let hint = match reason {
        MintError::NoTaskRole => "Set taskRoleArn in the task definition; the execution role is not enough.",
        MintError::Endpoint(_) | MintError::Timeout(_) => {
            "Try again; if it stays so, check that the task role exists and that ecs-tasks.amazonaws.com may assume it."
        }
        MintError::Sign(_) => "Check region, host and user of the target in the relay's configuration.",
    };
    error(CANNOT_CONNECT, format!("bastion: no IAM token for {user} on target {name}: {reason}"), "", hint)
}

fn dial(reason: &DialError, name: &str, host: &str, port: u16) -> ErrorText {
    let hint = match reason {
        DialError::Resolve(_) => {
            "Check host in the target's configuration, and that the VPC has DNS resolution and DNS host names on."
        }
        DialError::Timeout(_) => {
            "Let the security group of the database accept the security group of the task on this port, and check that \
             the database runs."
        }
        DialError::Connect { .. } => "Check that the database runs and listens on this port.",
    };
    error(CANNOT_CONNECT, format!("bastion: cannot reach target {name} at {host}:{port}: {reason}"), "", hint)
}

fn tls(reason: &UpstreamTlsError, name: &str, host: &str, port: u16) -> ErrorText {
    let hint = match reason {
        UpstreamTlsError::OtherName | UpstreamTlsError::BadName => {
            "Configure the endpoint's own name (…rds.amazonaws.com): a CNAME or an address is not in the certificate."
        }
        UpstreamTlsError::UnknownIssuer => {
            "bastion trusts the Amazon RDS CAs; for another CA set BASTION_EXTRA_CA_FILE to its PEM file in the task."
        }
        UpstreamTlsError::Expired => "Rotate the database's server certificate in RDS.",
        UpstreamTlsError::Certificate(_) | UpstreamTlsError::Handshake(_) | UpstreamTlsError::Timeout(_) => {
            "Check that host and port are those of the database, and the clock of both ends."
        }
    };
    error(
        CANNOT_CONNECT,
        format!("bastion: no login was sent to target {name} at {host}:{port}: {reason}"),
        "TLS with full verification comes before any login.",
        hint,
    )
}

/// The refusal in a few words, for the log.
pub(super) fn cause(refusal: &Refusal) -> String {
    match refusal {
        Refusal::ClientGone => "the client left".to_owned(),
        Refusal::ClientMalformed(what) | Refusal::UpstreamMalformed(what) => what.to_string(),
        Refusal::Rejected(said) | Refusal::UpstreamRefused(said) => said.message.clone(),
        Refusal::UnknownAuthentication(method) => format!("authentication method {method}"),
        Refusal::UpstreamGone => "the database closed the connection".to_owned(),
        Refusal::UpstreamWithoutTls => "the database does not offer TLS".to_owned(),
        Refusal::WantsPassword(what) => format!("the database wants {what}"),
    }
}
