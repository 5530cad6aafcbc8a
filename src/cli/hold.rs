//! An open tunnel with its local ports, until somebody or something ends it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::json;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::api::targets::Unavailable;
use crate::cli::card::Door;
use crate::cli::panic;
use crate::cli::ports::Port;
use crate::cli::strangers::Strangers;
use crate::cli::ui::Ui;
use crate::limits::{self, Spare};
use crate::tunnel::State;
use crate::tunnel::client;
use crate::tunnel::lanes::{Lanes, LanesState};
use crate::types::Engine;

/// Pause after a failed accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// The line with the state shows seconds.
const TICK: Duration = Duration::from_secs(1);

/// Lanes come one after the other; what is shown has stayed so for a moment, or for longer while some are missing.
const LANES_CALM: Duration = Duration::from_millis(300);
const LANES_LATE: Duration = Duration::from_secs(3);
/// Seconds between two lines of --stats.
const SHOW_EVERY: u32 = 5;

/// Prints the connect cards and the one line that means ready.
pub(super) fn announce(
    ui: &Ui,
    environment: &str,
    access: &str,
    task_id: &str,
    ports: &[Port],
    unavailable: &[Unavailable],
    door: &Door,
) {
    if ui.is_json() {
        let targets: Vec<_> = ports.iter().map(|port| port.served.json(port.listener.port, door)).collect();
        let unavailable: Vec<_> = unavailable.iter().map(Unavailable::json).collect();
        ui.event(&json!({
            "event": "ready", "env": environment, "access": access, "task": task_id, "targets": targets,
            "unavailable": unavailable
        }));
        return;
    }
    for port in ports {
        ui.data(&port.served.card(port.listener.port, door));
    }
    for target in unavailable {
        ui.data(&target.card());
    }
    ui.say(&format!("ready: {environment} ({access}) · Ctrl-C ends it"));
}

/// Serves the ports until `drain`, or until the tunnel has ended by itself, and says which: `Some` is why it ended.
pub(super) async fn serve(
    ui: &Arc<Ui>,
    lanes: &Lanes,
    ports: Vec<Port>,
    stats: bool,
    drain: &CancellationToken,
) -> Option<String> {
    let clients = TaskTracker::new();
    let accepting = CancellationToken::new();
    let strangers = Strangers::new(ui, ports.first().map_or(0, |port| port.listener.port));
    let short = Arc::new(AtomicBool::new(false));
    for port in ports {
        let (ui, strangers, short) = (Arc::clone(ui), Arc::clone(&strangers), Arc::clone(&short));
        clients.spawn(accept(ui, lanes.clone(), port, strangers, accepting.clone(), clients.clone(), short));
    }
    panic::on_purpose(&clients);
    let mut meter = Meter::new(lanes);
    let ended = tokio::select! {
        () = drain.cancelled() => None,
        cause = watch(ui, lanes) => Some(cause),
        () = show_lanes(ui, lanes) => None,
        () = meter.run(ui, lanes, stats) => None,
    };
    ui.end_status();
    accepting.cancel();
    clients.close();
    meter.farewell(ui, lanes);
    ended
}

/// Shows each change of state; returns the cause of the end.
async fn watch(ui: &Ui, lanes: &Lanes) -> String {
    let mut states = lanes.state();
    let mut lost_at: Option<Instant> = None;
    let mut shown = String::new();
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let state = states.borrow_and_update().clone();
        let (tunnel, link) = lanes.stats();
        let round_trip = link.round_trip.unwrap_or(tunnel.round_trip);
        ui.status(&status(&state, &lanes.lanes().borrow().clone(), round_trip, lanes.clients()));
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

/// The lanes in one line: `connected · 4 lanes · 12 ms · 3 connections`, `reconnecting since 4 s: …`.
fn status(state: &State, lanes: &LanesState, round_trip: Duration, connections: usize) -> String {
    if *state != State::Connected {
        return state.to_string();
    }
    let of = match lanes.open {
        open if open < lanes.wanted && !lanes.plain => format!("{open} of {} lanes", lanes.wanted),
        1 => "1 lane".to_owned(),
        open => format!("{open} lanes"),
    };
    let of = if lanes.plain { "1 session".to_owned() } else { of };
    let noun = if connections == 1 { "connection" } else { "connections" };
    format!("connected · {of} · {} ms · {connections} {noun}", round_trip.as_millis())
}

/// Tells how many lanes there are, when that has changed and stayed so for a moment, and why there are not more; never
/// returns.
async fn show_lanes(ui: &Ui, lanes: &Lanes) {
    let mut states = lanes.lanes();
    let mut shown = LanesState::default();
    loop {
        let wait = if states.borrow_and_update().open < shown.wanted { LANES_LATE } else { LANES_CALM };
        let calm = async {
            while tokio::time::timeout(wait, states.changed()).await.is_ok() {
                if states.borrow_and_update().open == shown.wanted {
                    break;
                }
            }
        };
        calm.await;
        let now = states.borrow_and_update().clone();
        if now.plain && !shown.plain && now.wanted > 0 {
            ui.say("  · the relay is older and knows no lanes: one session carries all connections");
        }
        if let Some(problem) = now.problem.as_ref().filter(|problem| shown.problem.as_ref() != Some(problem)) {
            ui.say(&format!("  · {problem}; going on with what there is"));
        }
        if now != shown {
            ui.event(&json!({
                "event": "lanes", "open": now.open, "wanted": now.wanted, "plain": now.plain, "problem": now.problem
            }));
        }
        shown = now;
        if states.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}

/// `short`: that a limit is reached has been said already.
async fn accept(
    ui: Arc<Ui>,
    lanes: Lanes,
    port: Port,
    strangers: Arc<Strangers>,
    accepting: CancellationToken,
    clients: TaskTracker,
    short: Arc<AtomicBool>,
) {
    let mut spare = Spare::new();
    loop {
        let accepted = tokio::select! {
            () = accepting.cancelled() => return,
            accepted = spare.accept(port.listener.accept()) => accepted,
        };
        let client = match accepted {
            Ok(client) => client,
            Err(error) => {
                if let Some(limit) = limits::reached(&error) {
                    if !short.swap(true, Ordering::Relaxed) {
                        ui.warn(&format!("  ! new connections are closed: {limit}"));
                    }
                    spare.turn_away(|| port.listener.accept()).await;
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let (ui, lanes, accepting) = (Arc::clone(&ui), lanes.clone(), accepting.clone());
        let strangers = Arc::clone(&strangers);
        let (name, engine) = (port.served.name.clone(), port.served.engine());
        clients.spawn(async move {
            if !strangers.admit(&ui, &name, &client).await {
                return;
            }
            match client::carry(&lanes, &name, engine, client).await {
                Ok(()) => {}
                // Only what the person can act on is worth a line.
                Err(error) if !error.end().is_news(engine != Engine::Tcp) => {
                    tracing::debug!(target = name, %error, "a connection has ended");
                }
                // At the end every open connection is cut, which is what was asked for.
                Err(_) if accepting.is_cancelled() => {}
                Err(error) => ui.warn(&format!("  ! a connection to {name} failed: {error}")),
            }
        });
    }
}

/// What went through, and how fast while it did.
struct Meter {
    last: (u64, u64),
    /// Seconds in which something went through.
    busy: u32,
}

impl Meter {
    fn new(lanes: &Lanes) -> Self {
        Self { last: moved(lanes), busy: 0 }
    }

    /// Counts, and with `shows` says it every few seconds; never returns.
    async fn run(&mut self, ui: &Ui, lanes: &Lanes, shows: bool) {
        let mut second = tokio::time::interval(Duration::from_secs(1));
        let (mut before, mut since) = (self.last, 0_u32);
        loop {
            second.tick().await;
            let now = moved(lanes);
            self.busy += u32::from(now != self.last);
            self.last = now;
            since += 1;
            if shows && since >= SHOW_EVERY {
                let (up, down) = (now.0.saturating_sub(before.0), now.1.saturating_sub(before.1));
                if up + down > 0 {
                    let seconds = u64::from(since);
                    ui.say(&format!(
                        "  · {}/s down, {}/s up{} · {} lanes · {} connections",
                        bytes(down / seconds),
                        bytes(up / seconds),
                        packed(lanes),
                        lanes.lanes().borrow().open,
                        lanes.clients()
                    ));
                    ui.event(&json!({
                        "event": "stats", "seconds": seconds, "bytes_up": up, "bytes_down": down,
                        "lanes": lanes.lanes().borrow().open, "connections": lanes.clients()
                    }));
                }
                (before, since) = (now, 0);
            }
        }
    }

    /// The closing line.
    fn farewell(&self, ui: &Ui, lanes: &Lanes) {
        let (tunnel, link) = lanes.stats();
        let (up, down) = moved(lanes);
        let speed = (up + down) / u64::from(self.busy.max(1));
        ui.say(&format!(
            "  closed: {} up, {} down, {}/s on average{}, {} reconnects",
            bytes(up),
            bytes(down),
            bytes(speed),
            packed(lanes),
            tunnel.reconnects
        ));
        ui.event(&json!({
            "event": "closed", "bytes_up": up, "bytes_down": down, "bytes_per_second": speed,
            "packed_up": link.sent_packed, "packed_down": link.received_packed, "reconnects": tunnel.reconnects,
            "resent": tunnel.resent.saturating_add(link.resent),
            "round_trip_ms": u64::try_from(tunnel.round_trip.as_millis()).unwrap_or(u64::MAX)
        }));
    }
}

/// Bytes of clients, up and down.
fn moved(lanes: &Lanes) -> (u64, u64) {
    let (tunnel, link) = lanes.stats();
    if lanes.lanes().borrow().plain { (tunnel.up, tunnel.down) } else { (link.sent, link.received) }
}

/// What compression saved, in words.
fn packed(lanes: &Lanes) -> String {
    let link = lanes.stats().1;
    let (plain, packed) = (link.sent + link.received, link.sent_packed + link.received_packed);
    if packed == 0 || plain <= packed {
        return String::new();
    }
    format!(", {} % saved by compression", 100 - 100 * packed / plain)
}

fn bytes(count: u64) -> String {
    indicatif::HumanBytes(count).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_is_one_line() {
        let line = |state: &State, open, wanted, connections| {
            let lanes = LanesState { open, wanted, ..LanesState::default() };
            status(state, &lanes, Duration::from_millis(12), connections)
        };
        assert_eq!(line(&State::Connected, 4, 4, 3), "connected · 4 lanes · 12 ms · 3 connections");
        assert_eq!(line(&State::Connected, 1, 4, 1), "connected · 1 of 4 lanes · 12 ms · 1 connection");
        let lost = State::Reconnecting { cause: "no network".to_owned(), since: Instant::now() };
        assert_eq!(line(&lost, 0, 4, 3), "reconnecting since 0 s: no network");
    }
}
