//! rustls configurations: one provider (aws-lc-rs), verification always on.

#[cfg(feature = "launcher")]
mod laptop;
#[cfg(feature = "relay")]
mod relay;

#[cfg(feature = "launcher")]
pub(crate) use laptop::laptop;
#[cfg(feature = "relay")]
pub(crate) use relay::{
    ALPN_POSTGRESQL, TlsConfigError, aws, aws_roots, extra_ca_pem, pem_certificates, random, random_hex, server,
    server_end_point, upstream, vault,
};

use std::sync::Arc;

use rustls::crypto::CryptoProvider;

/// The one crypto provider.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}
