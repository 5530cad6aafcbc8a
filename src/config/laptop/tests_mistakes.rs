use std::path::{Path, PathBuf};

use super::*;

const PARAMETER: &str = r#"{"region":"eu-west-1","access":{"read":{"task_definition":"t","subnets":["subnet-1"]}}}"#;

fn files(project: &str, user: Option<&str>) -> Files {
    let file = |path: &str, text: &str| (PathBuf::from(path), text.to_owned());
    Files { project: Some(file("bastion.toml", project)), user: user.map(|text| file("user/bastion.toml", text)) }
}

fn failed(name: &str, files: &Files, parameter: Option<&str>) -> String {
    let env: BTreeMap<&str, &str> = BTreeMap::new();
    resolve(name, files, parameter, &Flags::default(), &env).unwrap_err().to_string()
}

#[test]
fn every_mistake_is_reported_at_once_with_its_own_source() {
    let files = files(
        r#"
        environment = 1
        [env.prod]
        regio = "eu-west-1"
        idle_stop = 30
        lanes = 99
        [env.prod.access.Read]
        subnets = "subnet-1"
        assign_public_ip = "no"
        [env.prod.access.write]
        task_definition = "bastion-prod-write"
        subnets = []
        [env.prod.access.write.target.orders]
        engine = "postgre"
        credential = { rds_iam = { usr = "db" } }
        "#,
        Some("[env.prod]\nmax_age = 'soon'\n[env.prod.access.admin]\ntask_definition = 't'\n"),
    );
    let parameter = r#"{"document":7,"cluser":"x","access":{"admin":{"security_groups":[""]},"report":3}}"#;
    insta::assert_snapshot!(failed("prod", &files, Some(parameter)));
}

#[test]
fn a_mistake_that_a_higher_source_replaces_does_no_harm() {
    let files = files("[env.prod]\nidle_stop = '30m'\n", Some("[env.prod]\nidle_stop = 'soon'\naccess = 3\n"));
    let said = failed("prod", &files, Some(PARAMETER));
    assert_eq!(said, "user/bastion.toml: env.prod.access: is a number, not a table; write a table of keys and values");
}

#[test]
fn an_unknown_environment_gets_the_nearest_name() {
    let known = files("[env.prod]\nregion = 'eu-west-1'\n", Some("[env.staging]\n[env.prod]\n"));
    for (name, near) in [("prdo", "prod"), ("PROD", "prod"), ("stagin", "staging")] {
        let said = failed(name, &known, None);
        for part in [
            format!("there is no environment {name:?}"),
            format!("no SSM parameter /bastion/{name}"),
            format!("did you mean {near:?}? The files know prod, staging"),
        ] {
            assert!(said.contains(&part), "{part} is not in\n{said}");
        }
    }
    assert!(failed("x", &known, None).ends_with("the files know prod, staging"));
    assert!(failed("x", &Files::default(), None).contains("write env.x into bastion.toml"));
    // The misspelt table is why there is none.
    let said = failed("prod", &files("[envs.prod]\n", None), None);
    assert!(said.contains("envs: is not a known key; did you mean env?"), "{said}");
    assert!(said.contains("there is no environment \"prod\""), "{said}");
}

#[test]
fn a_syntax_error_names_its_line_and_does_not_hide_the_rest() {
    for (text, line) in [("[env.prod]\nregion = \n", 2), ("a = 1\n\n= 2\n", 3), ("[env", 1)] {
        let said = failed("prod", &files(text, None), None);
        assert!(said.starts_with(&format!("bastion.toml: is not TOML: line {line}: ")), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
    }
    // What seems missing may stand in the file that cannot be read; the other mistake stands for itself.
    let said = failed("prod", &files("[env", Some("[env.prod]\nidle_stop = 'soon'\n")), None);
    assert_eq!(said.lines().count(), 2, "{said}");
    assert!(said.contains("user/bastion.toml: env.prod.idle_stop: is \"soon\""), "{said}");
}

#[test]
fn a_parameter_that_is_no_environment_is_said() {
    for (text, what) in
        [("{", "is not JSON"), ("", "is not JSON"), ("[1]", "is not a table"), ("null", "is not a table")]
    {
        let said = failed("prod", &Files::default(), Some(text));
        assert!(said.starts_with(&format!("SSM parameter /bastion/prod: {what}")), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
    }
}

#[test]
fn flags_and_names_are_checked() {
    let flags = Flags { region: Some(String::new()), cluster: None };
    let env: BTreeMap<&str, &str> = BTreeMap::new();
    let said = resolve("prod", &Files::default(), Some(PARAMETER), &flags, &env).unwrap_err().to_string();
    assert!(said.starts_with("--region: is empty"), "{said}");
    let said = failed("a.b", &Files::default(), Some(PARAMETER));
    assert!(said.starts_with("environment \"a.b\": is not a name"), "{said}");
}

#[test]
fn files_are_found_upwards_to_the_repository_or_the_home_folder() {
    let folder = tempfile::tempdir().unwrap();
    let (home, user) = (folder.path().join("home"), folder.path().join("config"));
    let (repo, inner) = (home.join("repo"), home.join("repo/sub"));
    std::fs::create_dir_all(&inner).unwrap();
    std::fs::create_dir_all(user.join("bastion")).unwrap();
    let found = |start: &Path| known(&find_files(start, Some(&home), Some(&user)).unwrap());
    std::fs::write(folder.path().join("bastion.toml"), "[env.above]\n").unwrap();
    assert_eq!(found(&inner), [""; 0]);
    std::fs::write(home.join("bastion.toml"), "[env.home]\n").unwrap();
    std::fs::write(user.join("bastion/bastion.toml"), "[env.user]\n").unwrap();
    assert_eq!(found(&inner), ["home", "user"]);
    std::fs::write(repo.join(".git"), "gitdir: elsewhere").unwrap();
    assert_eq!(found(&inner), ["user"]);
    std::fs::write(repo.join("bastion.toml"), "[env.repo]\n").unwrap();
    assert_eq!(found(&inner), ["repo", "user"]);
}

#[test]
fn a_file_that_cannot_be_read_is_a_problem() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bastion.toml");
    let failed = || find_files(folder.path(), None, None).unwrap_err().to_string();
    std::fs::create_dir(&path).unwrap();
    assert!(failed().contains("bastion.toml: cannot be read: it is not a file"));
    std::fs::remove_dir(&path).unwrap();
    std::fs::write(&path, b"\xff").unwrap();
    assert!(failed().contains("UTF-8"));
    std::fs::write(&path, "#".repeat((1 << 20) + 1)).unwrap();
    assert!(failed().contains("larger than 1048576 bytes"));
}

#[test]
fn names_that_become_text_elsewhere_have_the_characters_of_names() {
    let target = |credential: &str| {
        let text = format!(
            "[env.prod.access.read.target.orders]\nengine = 'postgres'\nhost = 'orders.example.com'\ncredential = {credential}\n"
        );
        failed("prod", &files(&text, None), Some(PARAMETER))
    };
    let vault =
        |more: &str| format!("{{ vault = {{ address = 'https://v.example.com', creds = 'd/creds/r', {more} }} }}");
    for (credential, part) in [
        (
            vault(r#"role = "x\nALTER ROLE eve SUPERUSER;\n-- ""#),
            "vault.role: is \"x\\nALTER ROLE eve SUPERUSER;\\n-- \"",
        ),
        (vault("role = 'a b'"), "vault.role: is \"a b\"; write the name of a role"),
        (vault("role = 'a/b'"), "vault.role: is \"a/b\""),
        (vault("role = 'r', sts_region = 'evil.example'"), "vault.sts_region: is \"evil.example\""),
        (vault("role = 'r', sts_region = 'EU'"), "vault.sts_region: is \"EU\""),
        ("{ secrets_manager = { secret_id = 'a;b' } }".to_owned(), "secret_id: is \"a;b\"; write its name or ARN"),
        (r#"{ rds_iam = { user = "a\u001b[2J" } }"#.to_owned(), "user: is \"a\\u{1b}[2J\"; write it without control"),
    ] {
        let said = target(&credential);
        assert!(said.contains(part), "{part} is not in {said}");
    }
}
