//! Prometheus metrics of the relay.

use std::time::Duration;

use parking_lot::Mutex;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::relay::error::ErrorKind;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TargetLabel {
    target: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FailureLabel {
    target: String,
    kind: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    /// `granted`, or why not.
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BytesLabel {
    target: String,
    /// `up`: client to database; `down`: database to client.
    direction: &'static str,
}

/// Upper bounds in seconds: a warm login takes milliseconds, PAM may take seconds.
const LOGIN_BUCKETS: [f64; 8] = [0.005, 0.02, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0];

/// Everything that `/metrics` shows.
pub(super) struct Metrics {
    registry: Mutex<Registry>,
    connections: Family<TargetLabel, Counter>,
    open: Family<TargetLabel, Gauge>,
    refused: Family<FailureLabel, Counter>,
    bytes: Family<BytesLabel, Counter>,
    login: Family<TargetLabel, Histogram>,
    authorizations: Family<OutcomeLabel, Counter>,
    // The sums of the above, for lines that have no labels.
    granted: Counter,
    not_granted: Counter,
}

impl Metrics {
    pub(super) fn new() -> Self {
        let metrics = Self {
            registry: Mutex::new(Registry::with_prefix("bastion_relay")),
            connections: Family::default(),
            open: Family::default(),
            refused: Family::default(),
            bytes: Family::default(),
            login: Family::new_with_constructor(|| Histogram::new(LOGIN_BUCKETS)),
            authorizations: Family::default(),
            granted: Counter::default(),
            not_granted: Counter::default(),
        };
        {
            let mut registry = metrics.registry.lock();
            registry.register(
                "connections",
                "Database connections that came to their login",
                metrics.connections.clone(),
            );
            registry.register("open_connections", "Database connections open now", metrics.open.clone());
            registry.register(
                "refused_connections",
                "Connections refused, by kind of failure",
                metrics.refused.clone(),
            );
            registry.register("bytes", "Bytes relayed", metrics.bytes.clone());
            registry.register("login_seconds", "From accept to a finished login", metrics.login.clone());
            registry.register(
                "authorizations",
                "Callers that proved who they are, and why others did not",
                metrics.authorizations.clone(),
            );
        }
        metrics
    }

    /// The metrics of one target, looked up once.
    pub(super) fn target(&self, name: &str) -> TargetMetrics {
        let label = TargetLabel { target: name.to_owned() };
        let bytes = |direction| {
            let label = BytesLabel { target: name.to_owned(), direction };
            self.bytes.get_or_create(&label).clone()
        };
        TargetMetrics {
            name: name.to_owned(),
            connections: self.connections.get_or_create(&label).clone(),
            open: self.open.get_or_create(&label).clone(),
            login: self.login.get_or_create(&label).clone(),
            refused: self.refused.clone(),
            refused_all: Counter::default(),
            up: bytes("up"),
            down: bytes("down"),
        }
    }

    /// Counts a caller: `granted`, or the kind of the refusal.
    pub(super) fn authorized(&self, outcome: &'static str) {
        self.authorizations.get_or_create(&OutcomeLabel { outcome }).inc();
        if outcome == "granted" { &self.granted } else { &self.not_granted }.inc();
    }

    /// Callers that got a token, and those that did not.
    pub(super) fn callers(&self) -> (u64, u64) {
        (self.granted.get(), self.not_granted.get())
    }

    /// The text of `/metrics` (OpenMetrics 1.0).
    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        let registry = self.registry.lock();
        // Writing to a String cannot fail.
        let _infallible = encode(&mut text, &registry);
        text
    }
}

/// See [`Metrics::target`].
pub(super) struct TargetMetrics {
    name: String,
    connections: Counter,
    open: Gauge,
    login: Histogram,
    refused: Family<FailureLabel, Counter>,
    refused_all: Counter,
    pub(super) up: Counter,
    pub(super) down: Counter,
}

/// The numbers of one target at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) connections: u64,
    pub(super) refused: u64,
    pub(super) open: u64,
    pub(super) up: u64,
    pub(super) down: u64,
}

/// One open connection in the gauge, until dropped.
pub(super) struct OpenMetric<'a>(&'a Gauge);

impl Drop for OpenMetric<'_> {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl TargetMetrics {
    pub(super) fn opened(&self, login: Duration) -> OpenMetric<'_> {
        self.connections.inc();
        self.login.observe(login.as_secs_f64());
        self.open.inc();
        OpenMetric(&self.open)
    }

    pub(super) fn open(&self) -> i64 {
        self.open.get()
    }

    pub(super) fn failed(&self, kind: ErrorKind) {
        let label = FailureLabel { target: self.name.clone(), kind: kind.as_str() };
        self.refused.get_or_create(&label).inc();
        self.refused_all.inc();
    }

    pub(super) fn counts(&self) -> Counts {
        Counts {
            connections: self.connections.get(),
            refused: self.refused_all.get(),
            open: u64::try_from(self.open.get()).unwrap_or_default(),
            up: self.up.get(),
            down: self.down.get(),
        }
    }
}
