//! The laptop's way to AWS: directly or through a proxy, and whose certificates count on it. The calls of the API and the
//! websocket to the message gateway take the same one.

mod connect;
mod proxy;
mod trust;

use std::sync::{Arc, LazyLock, OnceLock};

use rustls::ClientConfig;

use crate::tls;
pub(crate) use connect::Io;
pub(crate) use proxy::{Proxies, Proxy};
pub(crate) use trust::Bundle;

/// How AWS is reached.
#[derive(Debug, Default)]
pub(crate) struct Network {
    pub(crate) proxies: Proxies,
    /// In place of the certificates that the machine trusts.
    pub(crate) bundle: Option<Bundle>,
    tls: OnceLock<Result<Arc<ClientConfig>, String>>,
}

impl Network {
    pub(crate) fn new(proxies: Proxies, bundle: Option<Bundle>) -> Self {
        Self { proxies, bundle, tls: OnceLock::new() }
    }

    /// Without a proxy, trusting what the machine trusts.
    pub(crate) fn direct() -> &'static Self {
        static DIRECT: LazyLock<Network> = LazyLock::new(Network::default);
        &DIRECT
    }

    /// The configuration for TLS to the message gateway and to proxies, made once.
    fn tls(&self) -> Result<Arc<ClientConfig>, String> {
        let roots = self.bundle.as_ref().map(Bundle::certificates);
        self.tls.get_or_init(|| tls::laptop(roots)).clone()
    }
}

#[cfg(test)]
mod tests;
