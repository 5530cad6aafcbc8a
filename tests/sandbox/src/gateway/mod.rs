//! The message gateway.
use std::net::IpAddr;
use std::sync::Arc;

#[derive(Debug, Clone, Default)]
pub struct Options {}
#[derive(Debug, Clone)]
pub struct SessionSpec {
    pub session_id: String,
    pub target: String,
    pub agent_host: IpAddr,
    pub port: u16,
}
#[derive(Debug, Clone)]
pub struct Started {
    pub session_id: String,
    pub token: String,
    pub stream_path: String,
}
pub type VerifyUpgrade = Arc<dyn Fn(&axum::http::request::Parts) -> Result<(), String> + Send + Sync>;
#[derive(Debug, Clone)]
pub struct Gateway {}
impl Gateway {
    pub fn new(_options: Options, _verify: VerifyUpgrade) -> Self {
        Self {}
    }
    pub fn router(&self) -> axum::Router {
        axum::Router::new()
    }
    pub fn start_session(&self, spec: SessionSpec) -> Started {
        Started { session_id: spec.session_id, token: String::new(), stream_path: String::new() }
    }
    pub fn resume_session(&self, _id: &str) -> Option<Started> {
        None
    }
    pub fn terminate_session(&self, _id: &str) -> bool {
        false
    }
    pub fn end_target(&self, _target: &str) {}
}
