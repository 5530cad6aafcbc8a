//! What a client is told of a database that cannot be reached, does not answer as it should, or refuses.

use std::borrow::Cow;

use bastion_wire::Malformed;
use bastion_wire::error_text::ErrorText;
use bastion_wire::pg::parameters::READ_ONLY;

use crate::relay::error::{DialError, UpstreamTlsError};
use crate::relay::reply::{Class, behind, error, iam, words};
use crate::types::Target;

/// Characters of a file's name in an error; a MySQL client shows 511 bytes of it all.
const FILE_NAME_MAX: usize = 100;
/// Of a database that has not answered in time.
const WAKING: &str = "A database that was paused (Aurora at 0 ACU) may still be waking: try again in a minute.";

pub(super) fn dial(reason: &DialError, target: &Target) -> ErrorText {
    let (name, address) = (&target.name, &target.endpoint);
    let hint: Cow<'_, str> = match reason {
        DialError::LinkLocal(_) => {
            "Check host and hostaddr in the target's configuration, and the DNS of the VPC.".into()
        }
        DialError::NoAddress => "Add host to the target's configuration, or \"host\" to the secret.".into(),
        DialError::Resolve(_) => {
            "Check host in the target's configuration, and that the VPC has DNS resolution and DNS host names on."
                .into()
        }
        DialError::Timeout(_) => format!(
            "Let the security group of the database accept the security group of the task on this port, and check that \
             the database runs. {WAKING}"
        )
        .into(),
        DialError::Connect { .. } => "Check that the database runs and listens on this port.".into(),
    };
    error(target, Class::CannotConnect, format!("bastion: cannot reach target {name} at {address}: {reason}"), "", hint)
}

pub(super) fn tls(reason: &UpstreamTlsError, target: &Target) -> ErrorText {
    let (name, address) = (&target.name, &target.endpoint);
    let hint = match reason {
        UpstreamTlsError::OtherName | UpstreamTlsError::BadName => {
            "Configure the endpoint's own name (…rds.amazonaws.com): a CNAME or an address is not in the certificate."
        }
        UpstreamTlsError::UnknownIssuer => {
            "bastion trusts the Amazon RDS CAs of commercial and GovCloud regions; for another CA give its PEM text as \
             extra_ca in the relay's configuration, or its file as BASTION_EXTRA_CA_FILE."
        }
        UpstreamTlsError::Expired => "Rotate the database's server certificate in RDS.",
        UpstreamTlsError::Certificate(_) | UpstreamTlsError::Handshake(_) => {
            "Check that host and port are those of the database, and the clock of both ends."
        }
        UpstreamTlsError::Timeout(_) => WAKING,
    };
    error(
        target,
        Class::CannotConnect,
        format!("bastion: no login was sent to target {name} at {address}: {reason}"),
        "TLS with full verification comes before any login.",
        hint,
    )
}

pub(super) fn without_tls(target: &Target) -> ErrorText {
    let (name, address, (engine, _)) = (&target.name, &target.endpoint, words(target.engine));
    error(
        target,
        Class::CannotConnect,
        format!("bastion: target {name} at {address} does not offer TLS, so no login was sent"),
        "",
        format!("Check that host and port are those of an RDS or Aurora {engine} endpoint."),
    )
}

pub(super) fn login_timeout(seconds: u64, target: &Target) -> ErrorText {
    let (name, address) = (&target.name, &target.endpoint);
    error(
        target,
        Class::ConnectionFailure,
        format!("bastion: target {name} at {address} did not finish the login within {seconds} s"),
        "",
        format!("{WAKING} If it stays so, look at the load and the log of the database."),
    )
}

pub(super) fn unanswered(seconds: u64, target: &Target) -> ErrorText {
    let (name, address) = (&target.name, &target.endpoint);
    error(
        target,
        Class::ConnectionFailure,
        format!(
            "bastion: target {name} at {address} was silent for {seconds} s and has not answered all commands that \
             were sent before this session was to start anew"
        ),
        "",
        "Connect again, and read the answers to all commands before COM_CHANGE_USER or COM_RESET_CONNECTION.",
    )
}

pub(super) fn gone(target: &Target) -> ErrorText {
    let (name, address) = (&target.name, &target.endpoint);
    error(
        target,
        Class::ConnectionFailure,
        format!("bastion: target {name} at {address} closed the connection during the login"),
        "",
        "The database may be restarting or failing over: try again in a minute.",
    )
}

pub(super) fn malformed(what: Malformed, target: &Target) -> ErrorText {
    let (name, address, (engine, _)) = (&target.name, &target.endpoint, words(target.engine));
    error(
        target,
        Class::ConnectionFailure,
        format!("bastion: target {name} at {address} does not answer like {engine}: {what}"),
        "",
        "Check engine, host and port of the target.",
    )
}

pub(super) fn file_requested(file: &str, target: &Target) -> ErrorText {
    let name = &target.name;
    let file: String = file.escape_debug().take(FILE_NAME_MAX).collect();
    error(
        target,
        Class::ConnectionFailure,
        format!("bastion: target {name} asked for the file \"{file}\" of this computer and did not get it"),
        "",
        "Tell whoever runs the database. LOAD DATA LOCAL needs local_infile = true for the target, and gets the \
         file that it names.",
    )
}

pub(super) fn unknown_authentication(method: &str, target: &Target, user: &str) -> ErrorText {
    let name = &target.name;
    error(
        target,
        Class::InvalidAuthorization,
        format!("bastion: target {name} wants an authentication method that bastion does not speak ({method})"),
        "",
        format!("Let {user} log in with IAM ({}) or a password.", iam::grant(target.engine, user)),
    )
}

pub(super) fn not_read_only(said: &ErrorText, target: &Target) -> ErrorText {
    let name = &target.name;
    behind(said, target, &format!("bastion: target {name} did not make the session read-only"), "", "")
}

/// Another refusal than one of the login's own.
pub(super) fn refused(said: &ErrorText, target: &Target, user: &str) -> ErrorText {
    let name = &target.name;
    let refused = format!("bastion: target {name} refused the login of {user}");
    let is_pooler = target.read_only && said.message.contains(READ_ONLY);
    let hint = if is_pooler { read_only_refused(user) } else { String::new() };
    behind(said, target, &refused, "", &hint)
}

/// What to do about a pooler that does not take the parameter, and whose connections are not to get a statement.
fn read_only_refused(user: &str) -> String {
    format!(
        "The target is read_only, and a connection pooler in front of it does not take {READ_ONLY}. PgBouncer 1.20 and later \
         do if track_extra_parameters names it; or set read_only of the target to false and leave it to the grants of {user}."
    )
}
