//! The local ports of the targets: which ones are wished for, and what stands in the way.

use std::collections::BTreeMap;
use std::io::ErrorKind;

use crate::api::targets::{Relay, Target};
use crate::cli::error::CommandError;
use crate::cli::escape;
use crate::cli::ui::Ui;
use crate::limits;
use crate::tunnel::listener::Listener;

/// One served target on its local port.
pub(super) struct Port {
    pub(super) served: Target,
    pub(super) listener: Listener,
}

/// Opens a local port for each target: that of the command line and no other, or else the configured one, or the target's
/// usual one, or the next that is free.
pub(super) fn open_ports(ui: &Ui, relay: &Relay, wishes: &BTreeMap<String, u16>) -> Result<Vec<Port>, CommandError> {
    if relay.targets.is_empty() {
        let unavailable = relay.unavailable.iter();
        let problems =
            unavailable.map(|target| format!("\n{}: {}", escape::line(&target.name), escape::line(&target.problem)));
        return Err(CommandError::failed(anyhow::anyhow!(
            "the relay serves none of its targets{}",
            problems.collect::<String>()
        )));
    }
    for (name, port) in wishes {
        if relay.unavailable.iter().any(|target| target.name == *name) {
            ui.warn(&format!("  ! port {port} stays closed: the relay does not serve {name}"));
        } else if !relay.targets.iter().any(|served| served.name == *name) {
            let known: Vec<&str> = relay.targets.iter().map(|served| served.name.as_str()).collect();
            return Err(CommandError::failed(anyhow::anyhow!(
                "--local-port names target {name:?}, which the relay does not serve"
            ))
            .hinted(format!("its targets are {}", known.join(", "))));
        }
    }
    // First those that must be exactly these, so that none of the others takes them.
    let mut ports: BTreeMap<&str, Port> = BTreeMap::new();
    for served in &relay.targets {
        if let Some(port) = wishes.get(&served.name) {
            let listener = Listener::bind_exactly(*port).map_err(|error| refused(&served.name, *port, true, &error))?;
            ports.insert(&served.name, Port { served: served.clone(), listener });
        }
    }
    for served in relay.targets.iter().filter(|served| !wishes.contains_key(&served.name)) {
        let wished = served.wished_port();
        let listener = Listener::bind(wished).map_err(|error| refused(&served.name, wished, false, &error))?;
        if listener.port != wished {
            let by = holder::of(wished);
            ui.warn(&format!("  ! port {wished} is taken{by}, {} is on {} instead", served.name, listener.port));
        }
        ports.insert(&served.name, Port { served: served.clone(), listener });
    }
    // In the relay's order.
    Ok(relay.targets.iter().filter_map(|served| ports.remove(served.name.as_str())).collect())
}

/// Why there is no port for this target, and what to do.
fn refused(name: &str, port: u16, exactly: bool, error: &std::io::Error) -> CommandError {
    let which = if exactly { format!("local port {port}") } else { format!("no local port from {port} upwards") };
    let (why, hint) = match error.kind() {
        ErrorKind::AddrInUse => {
            let by = if exactly { holder::of(port) } else { String::new() };
            ("is taken".to_owned() + &by, format!("choose another one: --local-port {name}=PORT"))
        }
        ErrorKind::PermissionDenied if port < 1024 => (
            "may be opened by the administrator only".to_owned(),
            format!("choose one from 1024 to 65535: --local-port {name}=PORT"),
        ),
        ErrorKind::AddrNotAvailable => (
            "cannot be opened: this machine has no address 127.0.0.1".to_owned(),
            "bring up its loopback interface (ip link set lo up)".to_owned(),
        ),
        _ => match limits::reached(error) {
            Some(limit) => (format!("cannot be opened: {error}"), limit),
            None => (format!("cannot be opened: {error}"), format!("choose another one: --local-port {name}=PORT")),
        },
    };
    let message = match (exactly, error.kind()) {
        (false, ErrorKind::AddrInUse) => anyhow::anyhow!("{which} is free for {name}"),
        _ => anyhow::anyhow!("local port {port} for {name} {why}"),
    };
    CommandError::failed(message).hinted(hint)
}

/// Who listens on a port, where the system tells: ` by psql (process 7)`, or nothing.
mod holder {
    /// A name of a program, as it may stand in a sentence.
    #[cfg(any(target_os = "linux", test))]
    fn printable(name: &str) -> String {
        name.trim().chars().map(|c| if c.is_control() { '?' } else { c }).take(32).collect()
    }

    #[cfg(target_os = "linux")]
    pub(super) fn of(port: u16) -> String {
        let sockets =
            ["/proc/net/tcp", "/proc/net/tcp6"].map(|table| std::fs::read_to_string(table).unwrap_or_default());
        let inodes: Vec<String> = sockets.iter().flat_map(|table| listening(table, port)).collect();
        process(&inodes).map_or_else(String::new, |(id, name)| format!(" by {} (process {id})", printable(&name)))
    }

    #[cfg(not(target_os = "linux"))]
    pub(super) fn of(_port: u16) -> String {
        String::new()
    }

    /// The inodes of the sockets that listen on `port`, out of a table of proc_pid_net(5).
    #[cfg(any(target_os = "linux", test))]
    fn listening(table: &str, port: u16) -> Vec<String> {
        const LISTEN: &str = "0A";
        let inode = |line: &str| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let local = fields.get(1)?.rsplit_once(':')?.1;
            let matches = u16::from_str_radix(local, 16).ok()? == port && *fields.get(3)? == LISTEN;
            matches.then(|| fields.get(9).map(|inode| (*inode).to_owned())).flatten()
        };
        table.lines().filter_map(inode).collect()
    }

    /// The process that has one of these sockets, if it is one of this user.
    #[cfg(target_os = "linux")]
    fn process(inodes: &[String]) -> Option<(u32, String)> {
        let links: Vec<String> = inodes.iter().map(|inode| format!("socket:[{inode}]")).collect();
        let has = |id: u32| {
            let files = std::fs::read_dir(format!("/proc/{id}/fd")).ok()?;
            let mut targets = files.flatten().filter_map(|file| std::fs::read_link(file.path()).ok());
            targets.any(|target| links.iter().any(|link| target.as_os_str() == link.as_str())).then_some(id)
        };
        let processes = std::fs::read_dir("/proc").ok()?.flatten();
        let id = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).find_map(has)?;
        Some((id, std::fs::read_to_string(format!("/proc/{id}/comm")).unwrap_or_default()))
    }

    #[cfg(test)]
    mod tests {
        #[test]
        fn listeners_are_found_in_the_table_of_linux() {
            let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
                 0: 0100007F:3C38 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 0 100 0 0 10 0\n\
                 1: 0100007F:3C38 0100007F:D431 01 00000000:00000000 00:00000000 00000000     0        0 4712 1 0 100 0 0 10 0\n\
                 2: 0100007F:3C39 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4713 1 0 100 0 0 10 0\n";
            assert_eq!(super::listening(table, 15_416), ["4711"]);
            assert_eq!(super::printable("a\u{1b}[2Jb\n"), "a?[2Jb");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_in_the_way_of_a_port_has_a_next_step() {
        let said = |exactly, kind: ErrorKind| refused("orders", 80, exactly, &kind.into()).to_string();
        for (text, parts) in [
            (said(true, ErrorKind::AddrInUse), ["local port 80 for orders is taken", "--local-port orders=PORT"]),
            (said(false, ErrorKind::AddrInUse), ["no local port from 80 upwards is free for orders", "=PORT"]),
            (said(true, ErrorKind::PermissionDenied), ["by the administrator only", "from 1024 to 65535"]),
            (said(true, ErrorKind::AddrNotAvailable), ["no address 127.0.0.1", "loopback"]),
        ] {
            for part in parts {
                assert!(text.contains(part), "{part:?} is not in {text}");
            }
        }
    }
}
