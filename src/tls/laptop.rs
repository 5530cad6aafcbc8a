//! TLS of the laptop towards AWS: the trust store of the operating system, so that company proxies work.

use std::sync::{Arc, OnceLock};

use rustls::{ClientConfig, RootCertStore};

use crate::tls::provider;

/// The configuration for the websocket to the message gateway, made once.
///
/// # Errors
/// A sentence, if the machine has no trusted certificates.
pub(crate) fn laptop() -> Result<Arc<ClientConfig>, String> {
    static CONFIG: OnceLock<Result<Arc<ClientConfig>, String>> = OnceLock::new();
    CONFIG.get_or_init(load).clone()
}

fn load() -> Result<Arc<ClientConfig>, String> {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    // One broken certificate in the store must not lock everybody out.
    let (added, _) = roots.add_parsable_certificates(found.certs);
    if added == 0 {
        return Err(
            "this machine has no trusted CA certificates; install ca-certificates or set SSL_CERT_FILE".to_owned()
        );
    }
    let config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}
