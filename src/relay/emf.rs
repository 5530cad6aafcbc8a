//! Metrics for CloudWatch as log lines (CloudWatch User Guide, "Embedded metric format specification"): counts of the last
//! minute, one line for each target and one for the callers.

use std::collections::BTreeMap;
use std::time::SystemTime;

use serde_json::{Value, json};

use crate::relay::metrics::Counts;
use crate::relay::state::RelayState;

const NAMESPACE: &str = "Bastion";

/// Remembers what was told, so that each line has what came since.
#[derive(Default)]
pub(super) struct Emf {
    targets: BTreeMap<String, Counts>,
    callers: (u64, u64),
}

impl Emf {
    /// The lines of now.
    pub(super) fn lines(&mut self, shared: &RelayState, now: SystemTime) -> Vec<u8> {
        let millis = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis();
        let millis = u64::try_from(millis).unwrap_or(u64::MAX);
        let (env, access) = (&shared.config.environment, &shared.config.access);
        let mut lines = Vec::new();
        for served in &shared.served {
            let counts = served.metrics.counts();
            let before = self.targets.insert(served.target.name.clone(), counts).unwrap_or_default();
            let metrics = [
                ("Connections", "Count", counts.connections.saturating_sub(before.connections)),
                ("RefusedConnections", "Count", counts.refused.saturating_sub(before.refused)),
                ("OpenConnections", "Count", counts.open),
                ("BytesUp", "Bytes", counts.up.saturating_sub(before.up)),
                ("BytesDown", "Bytes", counts.down.saturating_sub(before.down)),
            ];
            let line = line(
                millis,
                &["env", "access", "target"],
                &metrics,
                &json!({
                    "env": env, "access": access, "target": served.target.name
                }),
            );
            push(&mut lines, &line);
        }
        let callers = shared.metrics.callers();
        let metrics = [
            ("AuthorizedCallers", "Count", callers.0.saturating_sub(self.callers.0)),
            ("RefusedCallers", "Count", callers.1.saturating_sub(self.callers.1)),
        ];
        self.callers = callers;
        push(&mut lines, &line(millis, &["env", "access"], &metrics, &json!({"env": env, "access": access})));
        lines
    }
}

fn line(millis: u64, dimensions: &[&str], metrics: &[(&str, &str, u64)], values: &Value) -> Value {
    let definitions: Vec<Value> = metrics.iter().map(|(name, unit, _)| json!({"Name": name, "Unit": unit})).collect();
    let mut line = json!({"_aws": {"Timestamp": millis, "CloudWatchMetrics": [
        {"Namespace": NAMESPACE, "Dimensions": [dimensions], "Metrics": definitions}
    ]}});
    for (name, value) in values.as_object().into_iter().flatten() {
        line[name] = value.clone();
    }
    for (name, _, value) in metrics {
        line[*name] = json!(value);
    }
    line
}

fn push(lines: &mut Vec<u8>, line: &Value) {
    lines.extend_from_slice(line.to_string().as_bytes());
    lines.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_what_the_specification_wants() {
        let line = line(1_800_000_000_123, &["env"], &[("BytesUp", "Bytes", 7)], &json!({"env": "prod"}));
        let directive = &line["_aws"]["CloudWatchMetrics"][0];
        assert_eq!(line["_aws"]["Timestamp"], 1_800_000_000_123_u64);
        // Every dimension and metric that is named is a member at the root, dimensions as text.
        assert_eq!(directive["Dimensions"], json!([["env"]]));
        assert_eq!((&line["env"], &line["BytesUp"]), (&json!("prod"), &json!(7)));
        assert_eq!(directive["Metrics"], json!([{"Name": "BytesUp", "Unit": "Bytes"}]));
    }
}
