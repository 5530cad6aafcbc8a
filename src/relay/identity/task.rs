//! Which task the relay runs in: what ECS says, otherwise what the configuration says.

use std::sync::Arc;
use std::time::Duration;

use axum::http::{Request, Uri};
use bytes::Bytes;
use http_body_util::Full;
use rustls::ClientConfig;
use serde_json::Value;

use crate::relay::fetch::{HttpEndpoint, fetch};

/// The metadata of a task with many containers is some ten kilobytes.
const METADATA_MAX: usize = 256 * 1024;
const METADATA_TIMEOUT: Duration = Duration::from_secs(3);
/// It becomes a header of a signed request.
const NAME_MAX: usize = 512;

/// Where the name of the task comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum TaskSource {
    /// `${ECS_CONTAINER_METADATA_URI_V4}/task` (ECS Developer Guide, "task metadata endpoint version 4").
    Metadata(HttpEndpoint),
    Named(String),
    Unknown,
}

impl TaskSource {
    /// # Errors
    /// A sentence that names the cause.
    pub(super) async fn find(&self, tls: &Arc<ClientConfig>) -> Result<String, String> {
        match self {
            Self::Metadata(endpoint) => ask(endpoint, tls).await,
            Self::Named(name) => Ok(name.clone()),
            Self::Unknown => Err("neither ECS_CONTAINER_METADATA_URI_V4 nor BASTION_TASK is set".to_owned()),
        }
    }
}

async fn ask(endpoint: &HttpEndpoint, tls: &Arc<ClientConfig>) -> Result<String, String> {
    let mut request = Request::new(Full::new(Bytes::new()));
    let path = format!("{}/task", endpoint.path());
    *request.uri_mut() = path.parse::<Uri>().map_err(|error| format!("the path {path:?} of the metadata: {error}"))?;
    let answer =
        fetch(endpoint, tls, request, METADATA_MAX, METADATA_TIMEOUT).await.map_err(|error| error.to_string())?;
    if answer.status != 200 {
        return Err(format!("the task metadata endpoint answers with HTTP status {}", answer.status));
    }
    let metadata: Value =
        serde_json::from_slice(&answer.body).map_err(|_| "the task metadata is not JSON".to_owned())?;
    let arn = metadata.get("TaskARN").and_then(Value::as_str).filter(|arn| is_name(arn));
    arn.map(str::to_owned).ok_or_else(|| "the task metadata has no TaskARN".to_owned())
}

/// Whether `text` can name a task in a signed header.
pub(crate) fn is_name(text: &str) -> bool {
    (1..=NAME_MAX).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
}
