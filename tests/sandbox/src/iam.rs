//! Who may do what, as far as the launcher's calls need it: an identity and its allowed `action`, `action resource` or
//! `action resource own` patterns, where a `*` at the end matches anything and `own` is the condition that the tag
//! `bastion:user`, of the request or of the resource, is the caller's `${aws:userid}`.

use std::time::SystemTime;

/// A caller with its keys.
#[derive(Debug, Clone)]
pub struct Identity {
    pub access_key: String,
    pub secret_key: String,
    pub session_token: Option<String>,
    pub expires_at: Option<SystemTime>,
    pub arn: String,
    /// `ecs:RunTask`, `ssm:*`, `ssm:StartSession arn:…*` or `ecs:StopTask arn:…* own`
    pub allow: Vec<String>,
}

/// What the developer policy of `cdk/` allows, in short; the launcher makes no other call.
pub const DEVELOPER: [&str; 12] = [
    "sts:GetCallerIdentity",
    "ecs:RunTask arn:aws:ecs:ap-northeast-1:123456789012:task-definition/bastion-* own",
    "iam:PassRole arn:aws:iam::123456789012:role/bastion-*",
    "ecs:TagResource arn:aws:ecs:ap-northeast-1:123456789012:task/bastion/* own",
    "ecs:ListTasks",
    "ecs:DescribeTasks",
    "ecs:StopTask arn:aws:ecs:ap-northeast-1:123456789012:task/bastion/* own",
    "ssm:GetParameter arn:aws:ssm:ap-northeast-1:123456789012:parameter/bastion/*",
    "ssm:StartSession arn:aws:ecs:ap-northeast-1:123456789012:task/bastion/* own",
    "ssm:StartSession arn:aws:ssm:ap-northeast-1:123456789012:document/bastion-*",
    "ssm:ResumeSession",
    "ssm:TerminateSession",
];

impl Identity {
    /// An assumed-role session of the sandbox's account, with keys made from its name.
    pub fn session(role: &str, name: &str, allow: &[&str]) -> Self {
        Self {
            access_key: format!("ASIA{:0<16}", name.to_uppercase()),
            secret_key: format!("{name}-secret-key-of-the-sandbox-only"),
            session_token: Some(format!("{name}-session-token-of-the-sandbox-only")),
            expires_at: None,
            arn: format!("arn:aws:sts::{}:assumed-role/{role}/{name}", crate::ACCOUNT),
            allow: allow.iter().map(|&pattern| pattern.to_owned()).collect(),
        }
    }

    /// `UserId` of GetCallerIdentity, `${aws:userid}` of policies.
    pub fn user_id(&self) -> String {
        format!("AROAEXAMPLE:{}", self.session_name())
    }

    /// The part of `aws:userid` that names session ids: the session's name.
    pub fn session_name(&self) -> &str {
        self.arn.rsplit('/').next().unwrap_or_default()
    }

    /// # Errors
    /// The sentence that AWS gives with AccessDenied.
    pub fn authorize(&self, action: &str, resource: &str) -> Result<(), String> {
        self.authorize_tagged(action, resource, None)
    }

    /// As `authorize`, where `user` is the tag `bastion:user` of the request or of the resource.
    ///
    /// # Errors
    /// The sentence that AWS gives with AccessDenied.
    pub fn authorize_tagged(&self, action: &str, resource: &str, user: Option<&str>) -> Result<(), String> {
        let own = user.is_some_and(|user| user == self.user_id());
        let allowed = self.allow.iter().any(|pattern| {
            let mut words = pattern.split(' ');
            let (actions, resources) = (words.next().unwrap_or_default(), words.next().unwrap_or("*"));
            matches(actions, action) && matches(resources, resource) && (words.next().is_none() || own)
        });
        if allowed {
            return Ok(());
        }
        Err(format!(
            "User: {} is not authorized to perform: {action} on resource: {resource} because no identity-based policy \
             allows the {action} action",
            self.arn
        ))
    }
}

fn matches(pattern: &str, text: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(start) => text.starts_with(start),
        None => pattern == text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_developer_runs_bastions_and_nothing_else() {
        let alice = Identity::session("Developer", "alice", &DEVELOPER);
        let run = |family: &str, user: &str| {
            let definition = format!("arn:aws:ecs:ap-northeast-1:123456789012:task-definition/{family}:1");
            alice.authorize_tagged("ecs:RunTask", &definition, Some(user))
        };
        assert_eq!(run("bastion-demo-read", "AROAEXAMPLE:alice"), Ok(()));
        let refused = run("admin", "AROAEXAMPLE:alice").unwrap_err();
        assert!(refused.contains("alice is not authorized to perform: ecs:RunTask on resource"), "{refused}");
        assert!(run("bastion-demo-read", "AROAEXAMPLE:bob").is_err());
        assert!(alice.authorize("ecs:ExecuteCommand", "*").is_err());
    }

    #[test]
    fn a_developer_stops_and_enters_only_tasks_of_her_own() {
        let alice = Identity::session("Developer", "alice", &DEVELOPER);
        let task = "arn:aws:ecs:ap-northeast-1:123456789012:task/bastion/1";
        for action in ["ecs:StopTask", "ssm:StartSession"] {
            assert_eq!(alice.authorize_tagged(action, task, Some("AROAEXAMPLE:alice")), Ok(()));
            assert!(alice.authorize_tagged(action, task, Some("AROAEXAMPLE:bob")).is_err(), "{action}");
            assert!(alice.authorize_tagged(action, task, None).is_err(), "{action}");
        }
    }
}
