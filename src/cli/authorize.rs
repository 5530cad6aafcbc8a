//! Proves to the relay who is calling, and keeps the token that it gives for lanes (`docs/identity.md`).

use std::collections::BTreeSet;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{Request, Response, StatusCode};
use parking_lot::Mutex;
use secrecy::{ExposeSecret, SecretString};
use serde_json::json;

use crate::api;
use crate::api::authorize::{Audience, Challenge, Claim, Granted, OTHER_OWNER, STS_REFUSED, Signed, VaultLogin};
use crate::api::targets::IDENTITY_REQUIRED;
use crate::aws::{Aws, StsPost};
use crate::cli::error::CommandError;
use crate::cli::escape;
use crate::cli::relay_client::{self, describe};
use crate::cli::session::Sessions;
use crate::cli::ui::Ui;
use crate::tunnel::{BoxFuture, ControlError, Pass, Tunnel};

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
    /// What the person has been told about logins to Vault.
    told: Mutex<BTreeSet<String>>,
    /// The task whose relay is known to be the one that was asked for.
    expected: Mutex<String>,
}

impl Badge {
    /// Proves who is calling, where the relay asks: `identity` is what it says about that, and it is the relay that was asked
    /// for.
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
            told: Mutex::default(),
            expected: Mutex::new(sessions.task().arn),
        });
        let Some(identity) = identity else { return Ok(badge) };
        let phase = ui.phase("authorize");
        match badge.prove().await {
            Ok(arn) => ui.done(phase, &format!("the relay knows you as {arn}")),
            Err(error) if identity != IDENTITY_REQUIRED => {
                drop(phase);
                ui.warn(&format!("  ! the relay does not know who you are, which it allows: {error:#}"));
            }
            Err(error) => {
                let hint = hint(&format!("{error:#}"));
                let failed = CommandError::failed(error.context("the relay did not let you in"));
                return Err(match hint {
                    Some(hint) => failed.hinted(hint),
                    None => failed,
                });
            }
        }
        Ok(badge)
    }

    /// One challenge and its answer; remembers the token and returns whom the relay has recognised.
    async fn prove(&self) -> anyhow::Result<String> {
        self.meet().await?;
        let challenge: Challenge = answer(&relay_client::get(&self.tunnel, api::AUTHORIZE).await?)?;
        let claim = serde_json::to_vec(&self.sign(challenge).await?)?;
        let claim = Request::post(api::AUTHORIZE).header(CONTENT_TYPE, "application/json").body(claim.into())?;
        let granted: Granted = answer(&relay_client::send(&self.tunnel, claim).await?)?;
        *self.token.lock() = Some(granted.token.into());
        let password = granted.local_password.map(SecretString::from);
        *self.local_password.lock() = password;
        Ok(granted.arn)
    }

    /// Looks once at the relay of each task: a task that was started for a client may be of another revision.
    async fn meet(&self) -> anyhow::Result<()> {
        let task = self.sessions.task().arn;
        if *self.expected.lock() == task {
            return Ok(());
        }
        self.sessions.is_expected(&describe(&self.tunnel).await?).map_err(|error| error.source)?;
        *self.expected.lock() = task;
        Ok(())
    }

    /// Tells the person another password than `before`: the task behind the ports is a new one.
    fn tell_new_password(&self, before: Option<&SecretString>) {
        let now = self.local_password();
        let (before, now) = (before.map(ExposeSecret::expose_secret), now.as_ref().map(ExposeSecret::expose_secret));
        let Some(now) = now.filter(|_| before != now) else { return };
        if self.ui.is_json() {
            self.ui.event(&json!({"event": "password", "password": now}));
        } else {
            self.ui.data(&format!("the new task has a password of its own: {}", escape::line(now)));
        }
    }

    /// What clients must show, if the relay has asked for something and told it.
    pub(super) fn local_password(&self) -> Option<SecretString> {
        self.local_password.lock().clone()
    }

    /// The answer to `challenge`: a proof, and logins to Vaults of the environment.
    async fn sign(&self, challenge: Challenge) -> anyhow::Result<Claim> {
        let (task, region) = (self.sessions.task().arn, self.aws.region().unwrap_or_default());
        let proof = StsPost::proof(&challenge, &task, &region, self.aws.endpoint_authority())?;
        let vaults = self.vaults(challenge.vaults.as_deref());
        let logins = vaults.iter().map(StsPost::vault_login);
        let posts = std::iter::once(Ok(proof)).chain(logins).collect::<Result<Vec<_>, _>>()?;
        let mut signed = self.aws.sign_for_sts(&posts, self.tunnel.wall_clock()).await?.into_iter();
        let proof = signed.next().context("nothing was signed")?;
        let sts = Signed {
            authorization: value(&proof, "authorization").context("the signature has no authorization")?,
            x_amz_date: value(&proof, "x-amz-date").context("the signature has no date")?,
            x_amz_security_token: value(&proof, "x-amz-security-token"),
        };
        let logins = vaults.into_iter().zip(signed).map(|(vault, headers)| {
            Ok(VaultLogin {
                server_id: vault.server_id,
                sts_region: vault.sts_region,
                authorization: value(&headers, "authorization").context("the signature has no authorization")?,
                x_amz_date: value(&headers, "x-amz-date").context("the signature has no date")?,
            })
        });
        Ok(Claim { nonce: challenge.nonce, sts, vaults: logins.collect::<anyhow::Result<_>>()? })
    }

    /// Those of the Vaults that the relay asks for a login to that the environment knows; the person is told of others.
    fn vaults(&self, asked: Option<&[Audience]>) -> Vec<Audience> {
        let (environment, known) = self.sessions.vaults();
        let (signed_for, warnings) = may_be_signed_for(asked, known, environment);
        let mut told = self.told.lock();
        for warning in warnings {
            if !told.contains(&warning) {
                self.ui.warn(&format!("  ! {warning}"));
                told.insert(warning);
            }
        }
        signed_for
    }
}

/// Which of `asked`, what the relay wants logins to Vault for, are among `known`, those of the environment; and what there
/// is to say about the others. A signature for a Vault lets whoever has it in there, so only the environment decides.
fn may_be_signed_for(
    asked: Option<&[Audience]>,
    known: Vec<Audience>,
    environment: &str,
) -> (Vec<Audience>, Vec<String>) {
    let Some(asked) = asked else {
        let warning = "the relay is older and does not know logins to Vault as the caller, which targets of this access \
                       level need: update the image in the task definition";
        return (Vec::new(), if known.is_empty() { Vec::new() } else { vec![warning.to_owned()] });
    };
    let foreign = asked.iter().filter(|vault| !known.contains(vault)).map(|Audience { server_id, sts_region }| {
        let region = sts_region.as_ref().map(|region| format!(" (STS in {region:?})")).unwrap_or_default();
        format!(
            "the relay asks you to sign a login to the Vault with server id {server_id:?}{region}, which no target of \
             {environment} with this access level names: nothing is signed for it. If it is right, deploy the environment \
             again or add the target to bastion.toml"
        )
    });
    let warnings = foreign.collect();
    let mut signed_for: Vec<Audience> = Vec::new();
    for vault in known {
        if asked.contains(&vault) && !signed_for.contains(&vault) {
            signed_for.push(vault);
        }
    }
    (signed_for, warnings)
}

fn value(headers: &[(String, SecretString)], wanted: &str) -> Option<String> {
    let found = headers.iter().find(|(name, _)| name == wanted);
    found.map(|(_, value)| value.expose_secret().to_owned())
}

impl Pass for Badge {
    fn token(&self) -> Option<SecretString> {
        self.token.lock().clone()
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
fn answer<T: serde::de::DeserializeOwned>(answer: &Response<Bytes>) -> anyhow::Result<T> {
    if answer.status() == StatusCode::OK {
        return serde_json::from_slice(answer.body())
            .context("the relay's answer does not parse; is it a newer version?");
    }
    match relay_client::refusal(answer) {
        Some(sentence) => bail!("{sentence}"),
        None => bail!("the relay answers {} with HTTP status {}", api::AUTHORIZE, answer.status().as_u16()),
    }
}

/// What to do about the relay's sentence, where it does not say so itself: it tells a caller who is not the owner apart from
/// one whom AWS does not know.
fn hint(sentence: &str) -> Option<&'static str> {
    if OTHER_OWNER.iter().any(|start| sentence.starts_with(start)) {
        return Some("only the person who started a task may use it: bastion up starts your own");
    }
    sentence.starts_with(STS_REFUSED).then_some(
        "check which AWS credentials are in use: aws sts get-caller-identity with the same profile and environment",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_login_to_vault_is_signed_for_the_environments_vaults_and_for_no_other() {
        let vault = |server_id: &str, region: Option<&str>| Audience {
            server_id: server_id.to_owned(),
            sts_region: region.map(str::to_owned),
        };
        let (ours, region) = (vault("vault.example.com", None), Some("eu-west-1"));
        let known = || vec![ours.clone(), ours.clone(), vault("unasked", None)];
        let asked = [vault("other.example.com", None), ours.clone(), vault("vault.example.com", region)];
        let (signed_for, warnings) = may_be_signed_for(Some(&asked), known(), "prod");
        assert_eq!(signed_for, std::slice::from_ref(&ours));
        assert_eq!(warnings.len(), 2);
        assert!(warnings[0].contains("server id \"other.example.com\", which no target of prod"), "{}", warnings[0]);
        assert!(warnings[1].contains("\"vault.example.com\" (STS in \"eu-west-1\")"), "{}", warnings[1]);
        assert_eq!(may_be_signed_for(Some(&[]), known(), "prod"), (Vec::new(), Vec::new()));
        // An older relay gets nothing that it does not know, and is named only where something needs it.
        assert_eq!(may_be_signed_for(None, Vec::new(), "prod"), (Vec::new(), Vec::new()));
        let (signed_for, warnings) = may_be_signed_for(None, known(), "prod");
        assert!(signed_for.is_empty() && warnings[0].contains("update the image"), "{warnings:?}");
    }

    #[test]
    fn a_key_that_aws_does_not_know_is_not_told_as_another_owner() {
        let theirs =
            hint("this task belongs to arn:aws:iam::1:user/bob, and you are arn:aws:iam::1:user/alice").unwrap();
        assert!(theirs.contains("bastion up starts your own"));
        let unknown =
            hint("STS refused the signature with InvalidClientTokenId: AWS does not know these keys").unwrap();
        assert!(unknown.contains("aws sts get-caller-identity") && !unknown.contains("started"), "{unknown}");
        assert_eq!(hint("the claim was signed at a time that is 900 s away from the relay's"), None);
    }

    #[test]
    fn the_sentence_of_the_relay_is_the_error() {
        let answer = |status: u16, body: &'static str| {
            answer::<Granted>(&Response::builder().status(status).body(body.into()).unwrap()).unwrap_err().to_string()
        };
        assert_eq!(answer(403, r#"{"error":"this task belongs to somebody"}"#), "this task belongs to somebody");
        assert!(answer(500, "").contains("HTTP status 500"));
    }
}
