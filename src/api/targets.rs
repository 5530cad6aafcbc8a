//! What a relay says about itself and its targets.

use serde::{Deserialize, Serialize};

/// The relay and what it serves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Relay {
    pub(crate) version: String,
    /// The environment and the access level that the task definition is for; very old relays do not say.
    pub(crate) env: Option<String>,
    pub(crate) access: Option<String>,
    /// The person whom the task is for, as an ARN.
    pub(crate) owner: Option<String>,
    /// Whether a caller must prove who they are, `required` or `optional`; older relays do not ask.
    pub(crate) identity: Option<String>,
    /// Whether clients must show a password, which a proven caller is told.
    #[serde(default)]
    pub(crate) local_password: bool,
    /// RFC 3339.
    pub(crate) started_at: Option<String>,
    pub(crate) idle_stop_seconds: Option<u64>,
    pub(crate) max_age_seconds: Option<u64>,
    pub(crate) targets: Vec<Target>,
    /// Older relays serve all that they are configured with, or do not start.
    #[serde(default)]
    pub(crate) unavailable: Vec<Unavailable>,
}

/// The value of [`Relay::identity`] with which nobody comes in without a proof.
pub(crate) const IDENTITY_REQUIRED: &str = "required";
#[cfg(feature = "relay")]
pub(crate) const IDENTITY_OPTIONAL: &str = "optional";

/// One target that the relay serves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Target {
    pub(crate) name: String,
    /// `postgres`, `mysql`, `tcp`, or one that only a newer relay knows.
    pub(crate) engine: String,
    /// `None`, as the port: the secret that names it could not be read.
    pub(crate) host: Option<String>,
    pub(crate) port: Option<u16>,
    pub(crate) database: Option<String>,
    #[serde(default)]
    pub(crate) read_only: bool,
    /// Clients may send files of their own computer.
    #[serde(default)]
    pub(crate) local_infile: bool,
    pub(crate) db_user: Option<String>,
    /// `client`, `rds_iam`, `secrets_manager` or `vault`.
    #[serde(default)]
    pub(crate) credential: String,
    /// Whom Vault lets in, where it makes the user: `task` or `caller`.
    pub(crate) login: Option<String>,
    /// Why the relay cannot log in just now.
    pub(crate) problem: Option<String>,
    /// The port inside the task on which clients can connect without a tunnel of ours.
    pub(crate) relay_port: Option<u16>,
    /// The port wished for on the laptop.
    pub(crate) local_port: Option<u16>,
    pub(crate) open_connections: Option<u64>,
}

/// A target that the relay is configured with and does not serve.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Unavailable {
    pub(crate) name: String,
    /// What has happened and what to do.
    pub(crate) problem: String,
}
