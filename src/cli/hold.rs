//! An open tunnel with its local ports, until somebody or something ends it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::cli::authorize::Badge;
use crate::cli::error::CommandError;
use crate::cli::target::{Relay, Served};
use crate::cli::ui::Ui;
use crate::tunnel::lane;
use crate::tunnel::listener::Listener;
use crate::tunnel::{State, Stats, Tunnel};

/// Pause after a failed accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// The line with the state shows seconds.
const TICK: Duration = Duration::from_secs(1);

/// One served target on its local port.
pub(super) struct Port {
    pub(super) served: Served,
    listener: Listener,
}

/// Opens a local port for each target: `wishes` from the command line, then the configured one, then the next free.
pub(super) fn open_ports(ui: &Ui, relay: &Relay, wishes: &BTreeMap<String, u16>) -> Result<Vec<Port>, CommandError> {
    for name in wishes.keys() {
        if !relay.targets.iter().any(|served| served.name == *name) {
            let known: Vec<&str> = relay.targets.iter().map(|served| served.name.as_str()).collect();
            return Err(CommandError::failed(anyhow::anyhow!(
                "--local-port names target {name:?}, which the relay does not serve"
            ))
            .hinted(format!("its targets are {}", known.join(", "))));
        }
    }
    let mut ports: Vec<Port> = Vec::new();
    for served in &relay.targets {
        let wished = wishes.get(&served.name).copied().unwrap_or_else(|| served.wished_port());
        let listener = Listener::bind(wished).map_err(|error| {
            CommandError::failed(anyhow::anyhow!(
                "no local port from {wished} upwards can be opened for {}: {error}",
                served.name
            ))
            .hinted(format!("choose another one: --local-port {}=PORT", served.name))
        })?;
        if listener.port != wished {
            ui.warn(&format!("  ! port {wished} is taken, {} is on {} instead", served.name, listener.port));
        }
        ports.push(Port { served: served.clone(), listener });
    }
    Ok(ports)
}

/// Prints the connect cards and the one line that means ready.
pub(super) fn announce(ui: &Ui, environment: &str, access: &str, task_id: &str, ports: &[Port]) {
    if ui.is_json() {
        let targets: Vec<_> = ports.iter().map(|port| port.served.json(port.listener.port)).collect();
        ui.event(&json!({"event": "ready", "env": environment, "access": access, "task": task_id, "targets": targets}));
        return;
    }
    for port in ports {
        ui.data(&port.served.card(port.listener.port));
    }
    ui.say(&format!("ready: {environment} ({access}) · Ctrl-C ends it"));
}

/// Serves the ports until `drain`, or until the tunnel has ended by itself, and says which: `Some` is why it ended.
pub(super) async fn serve(
    ui: &Arc<Ui>,
    tunnel: &Tunnel,
    badge: &Arc<Badge>,
    ports: Vec<Port>,
    drain: &CancellationToken,
) -> Option<String> {
    let clients = TaskTracker::new();
    let accepting = CancellationToken::new();
    for port in ports {
        let badge = Arc::clone(badge);
        clients.spawn(accept(Arc::clone(ui), tunnel.clone(), badge, port, accepting.clone(), clients.clone()));
    }
    let ended = tokio::select! {
        () = drain.cancelled() => None,
        cause = watch(ui, tunnel) => Some(cause),
    };
    ui.end_status();
    accepting.cancel();
    clients.close();
    ended
}

/// Shows each change of state; returns the cause of the end.
async fn watch(ui: &Ui, tunnel: &Tunnel) -> String {
    let mut states = tunnel.state();
    let mut lost_at: Option<Instant> = None;
    let mut shown = String::new();
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let state = states.borrow_and_update().clone();
        ui.status(&status(&state, &tunnel.stats()));
        let (name, cause) = match &state {
            State::Ended { cause } => return cause.clone(),
            State::Asleep { cause } => ("asleep", cause.as_str()),
            State::Connected => ("connected", ""),
            State::Reconnecting { cause, .. } => ("reconnecting", cause.as_str()),
            State::Waking { .. } => ("waking", ""),
        };
        let now = format!("{name}{cause}");
        if name == "connected" {
            if let Some(lost_at) = lost_at.take() {
                ui.say(&format!("  · connected again after {:.1} s", lost_at.elapsed().as_secs_f64()));
                ui.event(&json!({"event": "state", "state": name}));
            }
        } else if now != shown {
            // Every attempt to reconnect is a state; only a new cause is news.
            lost_at.get_or_insert_with(Instant::now);
            ui.say(&format!("  · {state}"));
            ui.event(&json!({"event": "state", "state": name, "message": state.to_string()}));
        }
        shown = now;
        tokio::select! {
            changed = states.changed() => if changed.is_err() {
                return "the tunnel is gone".to_owned();
            },
            // Only the line on a terminal changes by itself.
            _ = tick.tick(), if ui.moves() => {}
        }
    }
}

/// The tunnel in one line: `connected · 12 ms · 3 connections`, `reconnecting since 4 s: …`.
fn status(state: &State, stats: &Stats) -> String {
    if *state != State::Connected {
        return state.to_string();
    }
    let connections = if stats.streams == 1 { "connection" } else { "connections" };
    format!("connected · {} ms · {} {connections}", stats.round_trip.as_millis(), stats.streams)
}

async fn accept(
    ui: Arc<Ui>,
    tunnel: Tunnel,
    badge: Arc<Badge>,
    port: Port,
    accepting: CancellationToken,
    clients: TaskTracker,
) {
    loop {
        let accepted = tokio::select! {
            () = accepting.cancelled() => return,
            accepted = port.listener.accept() => accepted,
        };
        let Ok(client) = accepted else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let (ui, tunnel, badge, accepting) = (Arc::clone(&ui), tunnel.clone(), Arc::clone(&badge), accepting.clone());
        let (name, engine) = (port.served.name.clone(), port.served.engine());
        clients.spawn(async move {
            match lane::carry(&tunnel, badge.as_ref(), &name, engine, client).await {
                Ok(()) => {}
                // Clients come and go; only what the person can act on is worth a line.
                Err(lane::LaneError::Client(error)) => tracing::debug!(target = name, %error, "a local client is gone"),
                // At the end every open connection is cut, which is what was asked for.
                Err(_) if accepting.is_cancelled() => {}
                Err(error) => ui.warn(&format!("  ! a connection to {name} failed: {error}")),
            }
        });
    }
}

/// The closing line: what went through.
pub(super) fn farewell(ui: &Ui, tunnel: &Tunnel) {
    let stats = tunnel.stats();
    ui.say(&format!("  closed: {} up, {} down, {} reconnects", bytes(stats.up), bytes(stats.down), stats.reconnects));
    ui.event(&json!({
        "event": "closed", "bytes_up": stats.up, "bytes_down": stats.down, "reconnects": stats.reconnects,
        "resent": stats.resent, "round_trip_ms": u64::try_from(stats.round_trip.as_millis()).unwrap_or(u64::MAX)
    }));
}

fn bytes(count: u64) -> String {
    indicatif::HumanBytes(count).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_is_one_line() {
        let stats = Stats { streams: 3, round_trip: Duration::from_millis(12), ..Stats::default() };
        assert_eq!(status(&State::Connected, &stats), "connected · 12 ms · 3 connections");
        let lost = State::Reconnecting { cause: "no network".to_owned(), since: Instant::now() };
        assert_eq!(status(&lost, &stats), "reconnecting since 0 s: no network");
    }
}
