//! The byte pipes that join a link, and the client connections that come out of it.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderMap, Response, StatusCode};
use bastion_wire::end::ResetReason;
use hyper_util::rt::TokioIo;
use tracing::{debug, info};

use crate::api::{HEADER_LANE, HEADER_LINK, LaneIntent, Upgrade};
use crate::link::Link;
use crate::relay::conn;
use crate::relay::conn::NotAdmitted;
use crate::relay::identity::Person;
use crate::relay::links::{Entry, Secret};
use crate::relay::response::{STOPPING, refusal, switching};
use crate::relay::state::RelayState;

/// Links at once: a person needs one for each terminal that is connected.
const LINKS_MAX: usize = 32;
/// Turns this HTTP connection into a lane.
pub(super) fn join(shared: &Arc<RelayState>, person: Option<Arc<Person>>, mut request: Request) -> Response<Body> {
    let (secret, intent) = match wish(request.headers()) {
        Ok(wish) => wish,
        Err(message) => return refusal(StatusCode::BAD_REQUEST, &message),
    };
    let link = match intent {
        LaneIntent::New => begin(shared, secret, person),
        LaneIntent::Join => known(shared, &secret, person.as_deref()),
    };
    let link = match link {
        Ok(link) => link,
        Err((status, message)) => return refusal(status, message),
    };
    let upgrade = hyper::upgrade::on(&mut request);
    shared.links.tasks.spawn(async move {
        match upgrade.await {
            Ok(upgraded) => match link.carry(TokioIo::new(upgraded)).await {
                Ok(()) => debug!("a lane has ended with its link"),
                Err(error) => debug!(%error, "a lane is gone"),
            },
            Err(error) => {
                debug!(%error, "an upgrade did not come about");
                if intent == LaneIntent::New {
                    link.close();
                }
            }
        }
    });
    switching(Upgrade::Lane)
}

fn text<'h>(headers: &'h HeaderMap, name: &str) -> &'h str {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

/// The number of the link that a request is about.
pub(super) fn secret(headers: &HeaderMap) -> Option<Secret> {
    let digits = text(headers, HEADER_LINK);
    let secret = u128::from_str_radix(digits, 16).ok().filter(|_| digits.len() == 32 && !digits.starts_with('+'));
    secret.map(u128::to_be_bytes)
}

/// Which link a request is about, and what it wants with it.
fn wish(headers: &HeaderMap) -> Result<(Secret, LaneIntent), String> {
    let secret =
        secret(headers).ok_or_else(|| format!("the header {HEADER_LINK} has to hold 32 hexadecimal digits"))?;
    let intent = text(headers, HEADER_LANE);
    let known = LaneIntent::ALL.into_iter().find(|known| known.as_str() == intent);
    let known = known.ok_or_else(|| format!("the header {HEADER_LANE} is {intent:?}; it has to be new or join"))?;
    Ok((secret, known))
}

fn known(shared: &RelayState, secret: &Secret, person: Option<&Person>) -> Result<Link, (StatusCode, &'static str)> {
    match shared.links.lock().get(secret) {
        Some(entry) if entry.person.as_deref() == person => Ok(entry.link.clone()),
        _ => Err((StatusCode::GONE, "this link is over; begin a new one")),
    }
}

fn begin(
    shared: &Arc<RelayState>,
    secret: Secret,
    person: Option<Arc<Person>>,
) -> Result<Link, (StatusCode, &'static str)> {
    let link = Link::acceptor(shared.memory.clone());
    let entry = Entry { link: link.clone(), person, leaves: false };
    {
        let mut links = shared.links.lock();
        if links.contains_key(&secret) {
            return Err((StatusCode::CONFLICT, "this link has begun already"));
        }
        if links.len() >= LINKS_MAX {
            return Err((StatusCode::TOO_MANY_REQUESTS, "too many links; end a bastion connect that you do not need"));
        }
        links.insert(secret, entry.clone());
    }
    let shared_by_task = Arc::clone(shared);
    shared.links.tasks.spawn(async move {
        tokio::join!(entry.link.keep_time(), serve(&shared_by_task, &entry));
        let none_is_left = {
            let mut links = shared_by_task.links.lock();
            links.remove(&secret);
            links.is_empty()
        };
        if none_is_left && shared_by_task.links.last_stops() {
            shared_by_task.links.left.cancel();
        }
        let stats = entry.link.stats();
        info!(
            cause = entry.link.over(),
            bytes.up = stats.received,
            bytes.down = stats.sent,
            bytes.up_packed = stats.received_packed,
            bytes.down_packed = stats.sent_packed,
            resent = stats.resent,
            "link closed"
        );
    });
    Ok(link)
}

/// Serves what the laptop opens until the link is over.
async fn serve(shared: &Arc<RelayState>, entry: &Entry) {
    while let Some((stream, target)) = entry.link.accept().await {
        if shared.drain.is_cancelled() {
            stream.reset(STOPPING);
            continue;
        }
        match shared.wanted(&target) {
            Ok(served) => {
                let (shared_by_task, served, person) = (Arc::clone(shared), Arc::clone(served), entry.person.clone());
                shared.conns.spawn(async move {
                    match conn::Conn::admit(shared_by_task, served, conn::TUNNEL.to_owned(), person).await {
                        Ok(conn) => conn.serve(stream).await,
                        Err(NotAdmitted::ProofWanted(sentence)) => {
                            stream.reset(&ResetReason::ProofRequired(&sentence).to_string());
                        }
                        Err(NotAdmitted::Stopping) => stream.reset(STOPPING),
                    }
                });
            }
            Err(message) => stream.reset(&message),
        }
    }
}
