//! What can go wrong with one connection, and whose it is.

use std::net::{IpAddr, SocketAddr};

use bastion_wire::error_text::ErrorText;
use bastion_wire::login::Refusal;
use bastion_wire::memory::Full;
use bastion_wire::session::OutOfProtocol;

use crate::credential::MintError;

/// Who has to act; the log field and the metric label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ErrorKind {
    Audit,
    Client,
    ClientAuth,
    ClientGone,
    Credential,
    Dial,
    Full,
    Internal,
    Shutdown,
    Upstream,
    UpstreamAuth,
    UpstreamTls,
}

impl ErrorKind {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Audit => "audit",
            Self::Client => "client",
            Self::ClientAuth => "client_auth",
            Self::ClientGone => "client_gone",
            Self::Credential => "credential",
            Self::Dial => "dial",
            Self::Full => "full",
            Self::Internal => "internal",
            Self::Shutdown => "shutdown",
            Self::Upstream => "upstream",
            Self::UpstreamAuth => "upstream_auth",
            Self::UpstreamTls => "upstream_tls",
        }
    }
}

/// The database cannot be reached.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum DialError {
    #[error("{address} does not take the connection: {reason}")]
    Connect { address: SocketAddr, reason: String },
    #[error("{0} is where a task finds the credentials of its role, not a database")]
    LinkLocal(IpAddr),
    #[error("neither the configuration nor the secret names a host")]
    NoAddress,
    #[error("the name does not resolve: {0}")]
    Resolve(String),
    #[error("no answer within {0} s")]
    Timeout(u64),
}

/// TLS with the database failed, so nothing secret was sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum UpstreamTlsError {
    #[error("the configured host is not a name that a certificate can carry")]
    BadName,
    #[error("its certificate is not valid: {0}")]
    Certificate(String),
    #[error("its certificate has expired")]
    Expired,
    #[error("the handshake failed: {0}")]
    Handshake(String),
    #[error("its certificate is for another name")]
    OtherName,
    #[error("the handshake took longer than {0} s")]
    Timeout(u64),
    #[error("its certificate is not from a trusted CA")]
    UnknownIssuer,
}

/// Why a connection did not come to its splice.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum ConnError {
    #[error("the audit log cannot be written")]
    Audit,
    #[error("the client could not be read or written: {0}")]
    ClientIo(String),
    #[error("the client's TLS handshake failed: {0}")]
    ClientTls(String),
    #[error("no credential: {0}")]
    Credential(#[from] MintError),
    #[error("cannot reach the database: {0}")]
    Dial(#[from] DialError),
    #[error("too many connections, the limit is {0}")]
    Full(usize),
    #[error("too many connections to the target, the limit is {0}")]
    TargetFull(usize),
    #[error("the client sent nothing for {0} s")]
    OpeningTimeout(u64),
    #[error("the login took longer than {0} s")]
    LoginTimeout(u64),
    /// Of the client.
    #[error("the database has asked for the file {0:?} of the client, which it may not have")]
    FileRequested(String),
    #[error("{0}")]
    NoMemory(Full),
    #[error("the operating system gives no random bytes")]
    NoRandom,
    #[error("{0}")]
    OutOfProtocol(OutOfProtocol),
    #[error("the login was refused")]
    Refused(Refusal),
    #[error("the relay is stopping")]
    Shutdown,
    /// The database has refused a login, and whether there is a newer one is not known.
    #[error("the login was refused, and a newer one cannot be had: {error}")]
    Stale { said: Box<ErrorText>, error: MintError },
    #[error("TLS with the database failed: {0}")]
    Tls(#[from] UpstreamTlsError),
    #[error("the database was silent for {0} s and owes answers to commands before a change of the user or a reset")]
    Unanswered(u64),
    #[error("the database connection broke during the login: {0}")]
    UpstreamIo(String),
}

impl ConnError {
    pub(super) fn kind(&self) -> ErrorKind {
        match self {
            Self::Audit => ErrorKind::Audit,
            Self::ClientIo(_) | Self::Refused(Refusal::ClientGone) => ErrorKind::ClientGone,
            Self::ClientTls(_)
            | Self::OpeningTimeout(_)
            | Self::Refused(
                Refusal::ClientMalformed(_)
                | Refusal::NoStartup(_)
                | Refusal::ProtocolVersion(_)
                | Refusal::StartupTooLong { .. },
            ) => ErrorKind::Client,
            Self::Refused(Refusal::WrongPassword) => ErrorKind::ClientAuth,
            Self::Credential(_) | Self::Stale { .. } => ErrorKind::Credential,
            Self::Dial(_) => ErrorKind::Dial,
            Self::Full(_) | Self::NoMemory(_) | Self::TargetFull(_) => ErrorKind::Full,
            Self::NoRandom => ErrorKind::Internal,
            Self::Shutdown => ErrorKind::Shutdown,
            Self::Refused(Refusal::UpstreamWithoutTls) | Self::Tls(_) => ErrorKind::UpstreamTls,
            Self::Refused(Refusal::UpstreamRefused(fields)) if is_auth(&fields.sqlstate) => ErrorKind::UpstreamAuth,
            Self::Refused(Refusal::UnknownAuthentication(_) | Refusal::WantsPassword(_)) => ErrorKind::UpstreamAuth,
            Self::OutOfProtocol(out) if out.from == "client" => ErrorKind::Client,
            Self::FileRequested(_)
            | Self::LoginTimeout(_)
            | Self::OutOfProtocol(_)
            | Self::Refused(_)
            | Self::Unanswered(_)
            | Self::UpstreamIo(_) => ErrorKind::Upstream,
        }
    }

    /// Whether the connection with the database is gone, or says nothing of use.
    pub(super) fn is_lost_upstream(&self) -> bool {
        let handshake = matches!(self, Self::Tls(UpstreamTlsError::Handshake(_)));
        handshake || matches!(self, Self::UpstreamIo(_) | Self::Refused(Refusal::UpstreamGone))
    }

    /// What the database said when it did not accept a credential, so that a fresh one may help.
    pub(super) fn stale_credential(&self) -> Option<&ErrorText> {
        match self {
            Self::Refused(Refusal::UpstreamRefused(said)) if is_auth(&said.sqlstate) => Some(said),
            _ => None,
        }
    }

    /// What the database said, if it was the database that refused.
    pub(super) fn said(&self) -> Option<&ErrorText> {
        match self {
            Self::Refused(
                Refusal::NotReadOnly(said)
                | Refusal::ReadOnlyParameter(said)
                | Refusal::Rejected(said)
                | Refusal::UpstreamRefused(said),
            ) => Some(said),
            Self::Stale { said, .. } => Some(said),
            _ => None,
        }
    }
}

/// SQLSTATE class 28, "Invalid Authorization Specification" (PostgreSQL manual, appendix A).
pub(super) fn is_auth(sqlstate: &str) -> bool {
    sqlstate.starts_with("28")
}
