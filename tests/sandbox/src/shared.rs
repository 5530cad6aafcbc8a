//! What the parts share, and the keys of the tasks' roles.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::AtomicUsize;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::container::Container;
use crate::ecs::{TaskDefinition, Tasks};
use crate::gateway::Gateway;
use crate::iam::Identity;
use crate::{ACCOUNT, Faults, rds};

/// See the module.
pub(crate) struct Shared {
    pub(crate) folder: PathBuf,
    pub(crate) relay: PathBuf,
    pub(crate) container: Option<Container>,
    pub(crate) identities: Vec<Identity>,
    pub(crate) task_definitions: Vec<TaskDefinition>,
    pub(crate) parameters: BTreeMap<String, String>,
    pub(crate) phase: Duration,
    pub(crate) credential_lifetime: Duration,
    pub(crate) rds: Mutex<(Option<PathBuf>, rds::State)>,
    pub(crate) tasks: Tasks,
    pub(crate) faults: Mutex<Faults>,
    pub(crate) address: OnceLock<SocketAddr>,
    pub(crate) sts_calls: AtomicUsize,
    /// The reason that each session was started with.
    pub(crate) reasons: Mutex<Vec<Option<String>>>,
    pub(crate) stop: CancellationToken,
    pub(crate) tracker: TaskTracker,
    pub(crate) gateway: Gateway,
    /// The newest credentials of each task, and when they are replaced.
    pub(crate) credentials: Mutex<BTreeMap<String, (Value, SystemTime)>>,
}

impl Shared {
    pub(crate) fn endpoint(&self) -> String {
        self.address.get().map(|address| format!("http://{address}")).unwrap_or_default()
    }

    pub(crate) fn faults(&self) -> Faults {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn credential_path<'t>(&self, task_id: &'t str) -> &'t str {
        // A task id is as hard to guess as the ids of the real endpoint.
        task_id
    }

    /// Everybody who can sign: people and task roles.
    pub(crate) fn everybody(&self) -> Vec<Identity> {
        let all = self.credentials.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let roles = all.into_iter().map(|(task, (keys, _))| {
            let text = |name: &str| keys[name].as_str().unwrap_or_default().to_owned();
            let role = text("RoleArn").rsplit('/').next().unwrap_or_default().to_owned();
            Identity {
                access_key: text("AccessKeyId"),
                secret_key: text("SecretAccessKey"),
                session_token: Some(text("Token")),
                expires_at: None,
                arn: format!("arn:aws:sts::{ACCOUNT}:assumed-role/{role}/{task}"),
                allow: Vec::new(),
            }
        });
        self.identities.iter().cloned().chain(roles).collect()
    }

    /// Forgets the keys of a task that has ended.
    pub(crate) fn revoke(&self, task_id: &str) {
        let old = self.credentials.lock().unwrap_or_else(PoisonError::into_inner).remove(task_id);
        if let Some((old, _)) = old {
            self.change_keys(|keys| {
                keys.remove(old["AccessKeyId"].as_str().unwrap_or_default());
            });
        }
    }

    fn change_keys(&self, change: impl FnOnce(&mut BTreeMap<String, rds::Key>)) {
        let mut rds = self.rds.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut rds.1.keys);
        if let (Some(path), state) = &*rds {
            // The folder may be gone at the end of a test.
            let _best_effort = state.write(path);
        }
    }

    /// Role credentials of a task: new ones at half of their life, or five minutes before their end.
    pub(crate) fn role_credentials(&self, task_id: &str, now: SystemTime) -> Option<Value> {
        let (role, db_users) = self.tasks.with(|tasks| {
            let task = tasks.iter().find(|task| task.id == task_id && task.last_status != "STOPPED")?;
            Some(task.role())
        })?;
        let mut all = self.credentials.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((current, renew_at)) = all.get(task_id)
            && now < *renew_at
        {
            return Some(current.clone());
        }
        let lifetime = self.credential_lifetime;
        let expires_at = now + lifetime;
        let id = uuid::Uuid::new_v4().simple().to_string().to_uppercase();
        let key = rds::Key {
            secret: format!("{}{}", uuid::Uuid::new_v4().simple(), uuid::Uuid::new_v4().simple()),
            // Session tokens of roles are about this long; a token made with them is about 1.5 kB.
            session_token: (0..20).map(|_| format!("{}/+=", uuid::Uuid::new_v4().simple())).collect(),
            expires_at: expires_at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs(),
            db_users,
        };
        let credentials = json!({
            "RoleArn": format!("arn:aws:iam::{ACCOUNT}:role/{role}"),
            "AccessKeyId": format!("ASIA{}", &id[..16]),
            "SecretAccessKey": key.secret,
            "Token": key.session_token,
            "Expiration": humantime::format_rfc3339_seconds(expires_at).to_string(),
        });
        let margin = Duration::from_secs(300).min(lifetime / 2);
        all.insert(task_id.to_owned(), (credentials.clone(), expires_at - margin));
        self.change_keys(|keys| {
            keys.insert(format!("ASIA{}", &id[..16]), key);
        });
        Some(credentials)
    }
}
