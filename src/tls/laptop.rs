//! TLS of the laptop towards AWS: the trust store of the operating system, so that company proxies work.

use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, RootCertStore};

use crate::tls::provider;

/// The configuration for the message gateway and for proxies. With `trusted` nothing else is trusted.
///
/// # Errors
/// A sentence, if the machine has no trusted certificates.
pub(crate) fn laptop(trusted: Option<&[CertificateDer<'static>]>) -> Result<Arc<ClientConfig>, String> {
    let mut roots = RootCertStore::empty();
    let found = match trusted {
        Some(certificates) => certificates.to_vec(),
        None => rustls_native_certs::load_native_certs().certs,
    };
    // One broken certificate in the store must not lock everybody out.
    let (added, _) = roots.add_parsable_certificates(found);
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
