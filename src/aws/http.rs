//! The HTTP client of the SDK: each request goes directly or through the proxy that its host has, and trusts what the
//! network trusts.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use aws_smithy_http_client::proxy::ProxyConfig;
use aws_smithy_http_client::tls::{self, TlsContext, TrustStore};
use aws_smithy_http_client::{Connector, ConnectorBuilder};
use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::HttpRequest;
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use http::Uri;
use parking_lot::Mutex;

use crate::network::{Network, Proxy};

/// A connection that was not used for so long is not used again: the network may be another one since, and nobody says so.
const REUSE: Duration = Duration::from_secs(2);

/// A connector has its connections, so there is one for each proxy and each pair of time limits.
type Key = (Option<Uri>, Option<Duration>, Option<Duration>);

#[derive(Clone)]
pub(super) struct RoutedClient(Arc<Inner>);

struct Inner {
    network: Arc<Network>,
    tls: TlsContext,
    connectors: Mutex<HashMap<Key, SharedHttpConnector>>,
}

impl fmt::Debug for RoutedClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RoutedClient").field("network", &self.0.network).finish_non_exhaustive()
    }
}

impl RoutedClient {
    /// # Errors
    /// A sentence, if the certificates of the network are none for the SDK.
    pub(super) fn new(network: &Arc<Network>) -> Result<Self, String> {
        let trust = match &network.bundle {
            Some(bundle) => TrustStore::empty().with_pem_certificate(bundle.pem()),
            None => TrustStore::default(),
        };
        let tls = TlsContext::builder().with_trust_store(trust).build().map_err(|error| error.to_string())?;
        Ok(Self(Arc::new(Inner { network: Arc::clone(network), tls, connectors: Mutex::default() })))
    }
}

impl HttpClient for RoutedClient {
    fn http_connector(&self, settings: &HttpConnectorSettings, components: &RuntimeComponents) -> SharedHttpConnector {
        SharedHttpConnector::new(Chooser {
            inner: Arc::clone(&self.0),
            settings: settings.clone(),
            components: components.clone(),
        })
    }
}

/// Sends each request on the way to its host.
#[derive(Clone)]
struct Chooser {
    inner: Arc<Inner>,
    settings: HttpConnectorSettings,
    components: RuntimeComponents,
}

impl fmt::Debug for Chooser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Chooser").finish_non_exhaustive()
    }
}

impl HttpConnector for Chooser {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let proxy = match request.uri().parse::<Uri>() {
            Ok(uri) => self.inner.network.proxies.to(&uri),
            Err(error) => Err(error.to_string()),
        };
        match proxy {
            Ok(proxy) => self.connector(proxy).call(request),
            Err(said) => HttpConnectorFuture::ready(Err(ConnectorError::user(said.into()))),
        }
    }
}

impl Chooser {
    fn connector(&self, proxy: Option<Proxy>) -> SharedHttpConnector {
        let (connect, read) = (self.settings.connect_timeout(), self.settings.read_timeout());
        let mut connectors = self.inner.connectors.lock();
        let key = (proxy.map(|proxy| proxy.full), connect, read);
        let known = connectors.entry(key).or_insert_with_key(|(proxy, ..)| self.build(proxy.as_ref()));
        known.clone()
    }

    fn build(&self, proxy: Option<&Uri>) -> SharedHttpConnector {
        let mut builder: ConnectorBuilder = Connector::builder();
        builder.set_connector_settings(Some(self.settings.clone()));
        builder.set_sleep_impl(self.components.sleep_impl());
        // What is no URL of a proxy was refused before.
        builder.set_proxy_config(proxy.and_then(|proxy| ProxyConfig::all(proxy.clone()).ok()));
        let builder = builder
            .pool_idle_timeout(REUSE)
            .tls_provider(tls::Provider::Rustls(tls::rustls_provider::CryptoMode::AwsLc))
            .tls_context(self.inner.tls.clone());
        SharedHttpConnector::new(builder.build())
    }
}
