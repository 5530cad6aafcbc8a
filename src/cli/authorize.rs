//! Proves to the relay who is calling, and keeps the token that it gives for lanes (`docs/identity.md`).

use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, bail};
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Value, json};

use crate::aws::Aws;
use crate::cli::error::CommandError;
use crate::cli::session::Sessions;
use crate::cli::target::{get, post};
use crate::cli::ui::Ui;
use crate::tunnel::{BoxFuture, ControlError, Pass, Tunnel};
use crate::wire::authorize::{BODY, CONTENT_TYPE, Challenge, Claim, Granted, HEADER_NONCE, HEADER_TASK, PATH, Signed};

/// The token of this launcher at the relay of one task.
pub(super) struct Badge {
    ui: Arc<Ui>,
    aws: Aws,
    tunnel: Tunnel,
    /// Knows the task that the tunnel leads to, which the relay must name too.
    sessions: Arc<Sessions>,
    token: Mutex<Option<SecretString>>,
    /// What clients show at the relay, if it asks for something.
    local_password: Mutex<Option<SecretString>>,
    /// One proof at a time: many clients may find the token too old at once.
    proving: tokio::sync::Mutex<()>,
}

impl Badge {
    /// Proves who is calling, where the relay asks: `identity` is what it says about that.
    ///
    /// # Errors
    /// If the relay requires it and refuses.
    pub(super) async fn get(
        ui: &Arc<Ui>,
        aws: &Aws,
        tunnel: &Tunnel,
        sessions: &Arc<Sessions>,
        identity: Option<&str>,
    ) -> Result<Arc<Self>, CommandError> {
        let badge = Arc::new(Self {
            ui: Arc::clone(ui),
            aws: aws.clone(),
            tunnel: tunnel.clone(),
            sessions: Arc::clone(sessions),
            token: Mutex::default(),
            local_password: Mutex::default(),
            proving: tokio::sync::Mutex::default(),
        });
        let Some(identity) = identity else { return Ok(badge) };
        let phase = ui.phase("authorize");
        match badge.prove().await {
            Ok(arn) => ui.done(phase, &format!("the relay knows you as {arn}")),
            Err(error) if identity != "required" => {
                drop(phase);
                ui.warn(&format!("  ! the relay does not know who you are, which it allows: {error:#}"));
            }
            Err(error) => {
                return Err(CommandError::failed(error.context("the relay did not let you in"))
                    .hinted("only the person who started a task may use it: bastion up starts your own"));
            }
        }
        Ok(badge)
    }

    /// One challenge and its answer; remembers the token and returns whom the relay has recognised.
    async fn prove(&self) -> anyhow::Result<String> {
        let (status, body) = get(&self.tunnel, PATH).await?;
        let challenge: Challenge = answer(status, &body)?;
        let signed = self.sign(&challenge).await?;
        let claim = serde_json::to_string(&Claim { nonce: challenge.nonce, sts: signed })?;
        let (status, body) = post(&self.tunnel, PATH, &claim).await?;
        let granted: Granted = answer(status, &body)?;
        *self.token.lock().unwrap_or_else(PoisonError::into_inner) = Some(granted.token.into());
        let password = granted.local_password.map(SecretString::from);
        *self.local_password.lock().unwrap_or_else(PoisonError::into_inner) = password;
        Ok(granted.arn)
    }

    /// Tells the person another password than `before`: the task behind the ports is a new one.
    fn tell_new_password(&self, before: Option<&SecretString>) {
        let now = self.local_password();
        let (before, now) = (before.map(ExposeSecret::expose_secret), now.as_ref().map(ExposeSecret::expose_secret));
        let Some(now) = now.filter(|_| before != now) else { return };
        if self.ui.is_json() {
            self.ui.event(&json!({"event": "password", "password": now}));
        } else {
            self.ui.data(&format!("the new task has a password of its own: {now}"));
        }
    }

    /// What clients must show, if the relay has asked for something and told it.
    pub(super) fn local_password(&self) -> Option<SecretString> {
        self.local_password.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Signs only for the task that the tunnel was opened to and for STS: whoever answers at its end may pass the
    /// question of another relay on.
    async fn sign(&self, challenge: &Challenge) -> anyhow::Result<Signed> {
        let Challenge { task, region, sts_host: host, nonce, .. } = challenge;
        let own_task = self.sessions.task().arn;
        if *task != own_task {
            bail!("the relay says that it is task {task}, but the tunnel leads to {own_task}");
        }
        let own_region = self.aws.region().unwrap_or_default();
        if *region != own_region {
            bail!("the relay asks STS in region {region:?}, and this environment is in {own_region:?}");
        }
        if !is_sts(host, region) && self.aws.endpoint_authority() != Some(host) {
            bail!("the relay asks at {host:?}, which is not STS in {region}");
        }
        let extra = [("content-type", CONTENT_TYPE), (HEADER_NONCE, nonce), (HEADER_TASK, task)];
        let headers = self.aws.sign_for_sts(host, &extra, BODY.as_bytes(), self.tunnel.wall_clock()).await?;
        let value = |wanted: &str| {
            let found = headers.iter().find(|(name, _)| name == wanted);
            found.map(|(_, value)| value.expose_secret().to_owned())
        };
        Ok(Signed {
            authorization: value("authorization").context("the signature has no authorization")?,
            x_amz_date: value("x-amz-date").context("the signature has no date")?,
            x_amz_security_token: value("x-amz-security-token"),
        })
    }
}

impl Pass for Badge {
    fn token(&self) -> Option<SecretString> {
        self.token.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn renew<'a>(&'a self, refused: Option<&'a SecretString>) -> BoxFuture<'a, Result<(), ControlError>> {
        Box::pin(async move {
            let _one = self.proving.lock().await;
            let current = self.token();
            // Another client may have been faster.
            if current.as_ref().map(ExposeSecret::expose_secret) != refused.map(ExposeSecret::expose_secret) {
                return Ok(());
            }
            let before = self.local_password();
            self.prove().await.map_err(|error| ControlError(format!("{error:#}")))?;
            self.tell_new_password(before.as_ref());
            Ok(())
        })
    }
}

/// The body of a good answer, or the relay's sentence as an error.
fn answer<T: serde::de::DeserializeOwned>(status: u16, body: &[u8]) -> anyhow::Result<T> {
    if status == 200 {
        return serde_json::from_slice(body).context("the relay's answer does not parse; is it a newer version?");
    }
    let sentence = serde_json::from_slice::<Value>(body).ok();
    match sentence.as_ref().and_then(|body| body["error"].as_str()) {
        Some(sentence) => bail!("{sentence}"),
        None => bail!("the relay answers {PATH} with HTTP status {status}"),
    }
}

/// Whether `host` is STS of `region`, by its public name or that of a VPC endpoint (AWS PrivateLink, "Interface endpoint
/// DNS names").
fn is_sts(host: &str, region: &str) -> bool {
    [format!("sts.{region}.amazonaws.com"), format!("sts.{region}.amazonaws.com.cn")].iter().any(|name| name == host)
        || (host.starts_with("vpce-")
            && [".vpce.amazonaws.com", ".vpce.amazonaws.com.cn"].iter().any(|domain| {
                host.strip_suffix(domain).is_some_and(|start| start.ends_with(&format!(".sts.{region}")))
            }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_sts_in_the_region_are_signed_for() {
        let region = "eu-west-1";
        for good in ["sts.eu-west-1.amazonaws.com", "vpce-0a1b-2c3d.sts.eu-west-1.vpce.amazonaws.com"] {
            assert!(is_sts(good, region), "{good}");
        }
        for bad in [
            "sts.amazonaws.com",
            "sts.eu-west-2.amazonaws.com",
            "sts.eu-west-1.amazonaws.com.evil.example",
            "iam.eu-west-1.amazonaws.com",
            "vpce-0a1b.execute-api.eu-west-1.vpce.amazonaws.com",
            "evil.sts.eu-west-1.vpce.amazonaws.com",
        ] {
            assert!(!is_sts(bad, region), "{bad}");
        }
    }

    #[test]
    fn the_sentence_of_the_relay_is_the_error() {
        let refused = answer::<Granted>(403, br#"{"error":"this task belongs to somebody"}"#).unwrap_err();
        assert_eq!(refused.to_string(), "this task belongs to somebody");
        assert!(answer::<Granted>(500, b"").unwrap_err().to_string().contains("HTTP status 500"));
    }
}
