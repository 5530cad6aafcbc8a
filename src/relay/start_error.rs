//! Why a relay did not start.

use std::net::SocketAddr;

use crate::relay::audit;
use crate::tls;

/// Why a relay did not start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    #[error("there is no audit log: {0}")]
    Audit(#[from] audit::StartError),
    #[error("cannot listen on {address}: {reason}")]
    Bind { address: SocketAddr, reason: std::io::Error },
    #[error("the operating system gives no random bytes for the local password")]
    NoRandom,
    #[error(transparent)]
    Tls(#[from] tls::TlsConfigError),
}
