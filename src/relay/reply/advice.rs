//! What to do when there is no credential: the next step for each cause.

use crate::credential::{MintError, SecretError, VaultError};

/// One sentence or two for the client, or for whoever asks why a target is not served.
pub(in crate::relay) fn credential(reason: &MintError) -> &'static str {
    match reason {
        MintError::NoTaskRole => "Set taskRoleArn in the task definition; the execution role is not enough.",
        MintError::Endpoint(_) | MintError::Timeout(_) => {
            "Try again; if it stays so, check that the task role exists and that ecs-tasks.amazonaws.com may assume it."
        }
        MintError::Nobody => {
            "Connect through bastion up or bastion connect, which prove it for you (their warnings say why, if they could \
             not); a plain port cannot."
        }
        MintError::Sign(_) => "Check region, host and user of the target in the relay's configuration.",
        MintError::Secret { error, .. } => secret(error),
        MintError::Vault { error, .. } => vault(error),
    }
}

fn secret(reason: &SecretError) -> &'static str {
    match reason {
        SecretError::Denied => {
            "Allow the task role secretsmanager:GetSecretValue on this secret; if the secret has a resource policy, or is in \
             another account, that must allow the role as well."
        }
        SecretError::DefaultKey => {
            "Encrypt it with a KMS key of your own (aws secretsmanager update-secret --kms-key-id) whose policy allows the \
             task role kms:Decrypt."
        }
        SecretError::Deleted => {
            "Restore it (aws secretsmanager restore-secret), or name the secret that took its place in the configuration."
        }
        SecretError::Engine { .. } => {
            "Name the secret of this database in the target's configuration, or set its engine to that of the secret."
        }
        SecretError::Failed(_) => "Try again in a minute; if it stays so, look at the AWS Health Dashboard.",
        SecretError::Flawed(_) | SecretError::TooLong(_) => {
            "Write the secret as JSON with the keys username and password; host, port, dbname and engine are optional."
        }
        SecretError::Kms => {
            "Allow the task role kms:Decrypt on the key of the secret, in the role's policy and in the key's policy, and check \
             that the key is enabled."
        }
        SecretError::NoEngine(_) => "Add engine to the target's configuration: \"postgres\" or \"mysql\".",
        SecretError::NotFound { .. } => {
            "Check secret_id and region in the target's configuration; a secret of another account is named by its whole ARN."
        }
        SecretError::Refused(_) => "Look into CloudTrail for the GetSecretValue call of the task role.",
        SecretError::Throttled => "Try again in a minute.",
        SecretError::Unreachable(_) => {
            "Give the task's subnets a way to Secrets Manager: a VPC endpoint (com.amazonaws.REGION.secretsmanager) whose \
             security group lets the task in on port 443, or NAT."
        }
    }
}

fn vault(reason: &VaultError) -> &'static str {
    match reason {
        VaultError::Answer | VaultError::Refused(_) | VaultError::TooLong(_) => {
            "Check that address is that of Vault, and look into its audit log."
        }
        VaultError::CertificateExpired => "Ask whoever runs Vault to renew its certificate.",
        VaultError::CertificateIssuer => {
            "Set ca_file of the target to a PEM file with the CA of Vault's certificate; with ca_file no other one is trusted."
        }
        VaultError::CertificateName => "Configure the address as its certificate names it.",
        VaultError::CredsDenied(_) => {
            "Give the role of the AWS auth method a policy with capability read on this path, and check creds."
        }
        VaultError::Database => {
            "Look into Vault's log: its connection to the database, or the creation statements of the role, do not work."
        }
        VaultError::Denied | VaultError::LoginDenied(_) => {
            "Check role, mount and namespace in the target's configuration, and bound_iam_principal_arn of the role in Vault."
        }
        VaultError::NoCredsRole(_) => "Check creds in the target's configuration: <mount>/creds/<role>.",
        VaultError::NoLease => "Connect again: a new user is made.",
        VaultError::NoLoginRole(_) => {
            "Check role in the target's configuration, or write it: vault write auth/aws/role/…"
        }
        VaultError::NoMount => {
            "Check mount and namespace in the target's configuration, or enable it: vault auth enable aws."
        }
        VaultError::OtherCaller(_) => {
            "Ask whoever runs Vault to let your role in: bound_iam_principal_arn of this role in Vault."
        }
        VaultError::OtherPrincipal(_) => {
            "Add the ARN of the task role to bound_iam_principal_arn of the role in Vault."
        }
        VaultError::NoActive => "Try again in a minute; if it stays so, ask whoever runs Vault.",
        VaultError::Sealed => "Ask whoever runs Vault to unseal it.",
        VaultError::ServerId => {
            "Set server_id in the target's configuration to iam_server_id_header_value of the auth method's client \
             configuration."
        }
        VaultError::Standby => {
            "Configure the address of the active node, or of the load balancer in front of the cluster; if it has worked \
             before, the active node may be away: ask whoever runs Vault."
        }
        VaultError::Sts => {
            "Set sts_region in the target's configuration to the region whose STS the auth method asks, and check the clocks; \
             with login \"caller\" sign in again (aws sso login) if your credentials have expired."
        }
        VaultError::Throttled => "Try again in a minute; the limit is a quota of Vault.",
        VaultError::Unsigned => "Connect again: bastion signs another one for you.",
        VaultError::Unavailable(_) => "Try again; if it stays so, look at the load balancer in front of Vault.",
        VaultError::Unreachable(_) => "Let the task's security group and routes reach Vault.",
    }
}
