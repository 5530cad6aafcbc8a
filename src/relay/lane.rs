//! Links: the byte pipes that join one, and the client connections that come out of it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderMap, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio_util::task::TaskTracker;
use tracing::{debug, info};

use crate::link::Link;
use crate::relay::conn::NotAdmitted;
use crate::relay::http::{STOPPING, refusal, switching};
use crate::relay::identity::Person;
use crate::relay::{Shared, conn};
use crate::types::{HEADER_LANE, HEADER_LINK, UPGRADE_LANE};
use crate::wire::authorize::PROOF_WANTED;

/// Links at once: a person needs one for each terminal that is connected.
const LINKS_MAX: usize = 32;
/// At the end of the relay, what was sent last has so long to arrive.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// The number of a link, which only its owner knows. Never printed.
type Secret = [u8; 16];

/// Every open link.
#[derive(Default)]
pub(super) struct Links {
    links: Mutex<HashMap<Secret, Entry>>,
    tasks: TaskTracker,
}

#[derive(Clone)]
struct Entry {
    link: Link,
    person: Option<Arc<Person>>,
}

impl Links {
    fn lock(&self) -> MutexGuard<'_, HashMap<Secret, Entry>> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets what was sent arrive, then ends every link.
    pub(super) async fn close(&self) {
        self.tasks.close();
        let links: Vec<Link> = self.lock().values().map(|entry| entry.link.clone()).collect();
        let last_words = async {
            for link in &links {
                link.drained().await;
            }
            links.iter().for_each(Link::close);
            self.tasks.wait().await;
        };
        // A laptop that is away takes nothing.
        let _in_time = tokio::time::timeout(LAST_WORDS, last_words).await;
    }
}

/// Turns this HTTP connection into a lane.
pub(super) fn join(shared: &Arc<Shared>, person: Option<Arc<Person>>, mut request: Request) -> Response<Body> {
    let (secret, new) = match wish(request.headers()) {
        Ok(wish) => wish,
        Err(message) => return refusal(StatusCode::BAD_REQUEST, &message),
    };
    let link = match if new { begin(shared, secret, person) } else { known(shared, &secret, person.as_deref()) } {
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
                if new {
                    link.close();
                }
            }
        }
    });
    switching(UPGRADE_LANE)
}

/// Which link, and whether it is a new one.
fn wish(headers: &HeaderMap) -> Result<(Secret, bool), String> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let digits = text(HEADER_LINK);
    let secret = u128::from_str_radix(digits, 16).ok().filter(|_| digits.len() == 32 && !digits.starts_with('+'));
    let secret = secret.ok_or_else(|| format!("the header {HEADER_LINK} has to hold 32 hexadecimal digits"))?;
    match text(HEADER_LANE) {
        "new" => Ok((secret.to_be_bytes(), true)),
        "join" => Ok((secret.to_be_bytes(), false)),
        other => Err(format!("the header {HEADER_LANE} is {other:?}; it has to be new or join")),
    }
}

fn known(shared: &Shared, secret: &Secret, person: Option<&Person>) -> Result<Link, (StatusCode, &'static str)> {
    match shared.links.lock().get(secret) {
        Some(entry) if entry.person.as_deref() == person => Ok(entry.link.clone()),
        _ => Err((StatusCode::GONE, "this link is over; begin a new one")),
    }
}

fn begin(
    shared: &Arc<Shared>,
    secret: Secret,
    person: Option<Arc<Person>>,
) -> Result<Link, (StatusCode, &'static str)> {
    let link = Link::acceptor();
    let entry = Entry { link: link.clone(), person };
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
        shared_by_task.links.lock().remove(&secret);
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
async fn serve(shared: &Arc<Shared>, entry: &Entry) {
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
                        Err(NotAdmitted::ProofWanted(sentence)) => stream.reset(&format!("{PROOF_WANTED}{sentence}")),
                        Err(NotAdmitted::Stopping) => stream.reset(STOPPING),
                    }
                });
            }
            Err(message) => stream.reset(&message),
        }
    }
}
