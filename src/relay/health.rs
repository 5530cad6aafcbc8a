//! The container health check: asks a running relay whether it is alive, without a shell or curl in the image.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use crate::api::{HEALTH, PORT};

/// Below the usual 5 s timeout of a container health check.
const TIMEOUT: Duration = Duration::from_secs(3);

/// Asks `/healthz` of the relay that listens on `listen`.
///
/// # Errors
/// What is wrong, in one sentence.
pub(crate) fn healthy(listen: IpAddr) -> Result<(), String> {
    let address = SocketAddr::new(listen, PORT);
    let answer = ask(address).map_err(|error| format!("the relay at {address} does not answer: {error}"))?;
    match answer.split_whitespace().nth(1) {
        Some("200") => Ok(()),
        _ => Err(format!("the relay at {address} is not healthy")),
    }
}

fn ask(address: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    stream.write_all(format!("GET {HEALTH} HTTP/1.1\r\nHost: relay\r\nConnection: close\r\n\r\n").as_bytes())?;
    let mut answer = Vec::new();
    stream.take(4096).read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}
