//! Which proxy leads to a host: the variables that curl and AWS's own tools read.

use std::fmt;

use http::uri::Authority;
use http::{HeaderValue, Uri};
use hyper_util::client::proxy::matcher::Matcher;

/// What is never asked of a proxy: this machine, and where it gets its credentials from (link-local addresses).
const NEVER: &str = "localhost,127.0.0.0/8,::1,169.254.0.0/16,fe80::/10,fd00:ec2::/32";

/// A variable that names a proxy.
#[derive(Clone, Default)]
struct Setting {
    variable: &'static str,
    value: String,
}

/// The proxy variables of the environment.
#[derive(Clone, Default)]
pub(crate) struct Proxies {
    http: Option<Setting>,
    https: Option<Setting>,
    no: String,
}

/// A proxy, and the variable that names it. `Display` shows neither user nor password.
#[derive(Clone)]
pub(crate) struct Proxy {
    pub(crate) uri: Uri,
    /// `Basic …`, marked as sensitive.
    pub(crate) authorization: Option<HeaderValue>,
    pub(crate) variable: &'static str,
    /// With user and password, for a client that takes a proxy as one URL.
    pub(crate) full: Uri,
}

impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the proxy {} ({})", self.uri.to_string().trim_end_matches('/'), self.variable)
    }
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl fmt::Debug for Proxies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let variable = |setting: &Option<Setting>| setting.as_ref().map(|setting| setting.variable);
        f.debug_struct("Proxies")
            .field("http", &variable(&self.http))
            .field("https", &variable(&self.https))
            .field("no", &self.no)
            .finish()
    }
}

impl Proxies {
    /// Reads `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY`. The name in lower case wins, and an empty value means
    /// no proxy.
    pub(crate) fn new(env: impl Fn(&str) -> Option<String>) -> Self {
        let setting = |names: [&'static str; 2]| {
            let (variable, value) = names.into_iter().find_map(|name| Some((name, env(name)?)))?;
            Some(Setting { variable, value: value.trim().to_owned() })
        };
        let all = setting(["all_proxy", "ALL_PROXY"]);
        let filled = |names| setting(names).or_else(|| all.clone()).filter(|setting| !setting.value.is_empty());
        Self {
            http: filled(["http_proxy", "HTTP_PROXY"]),
            https: filled(["https_proxy", "HTTPS_PROXY"]),
            no: setting(["no_proxy", "NO_PROXY"]).unwrap_or_default().value,
        }
    }

    /// The proxy to a destination; `None`: it is reached directly.
    ///
    /// # Errors
    /// A sentence that names the variable whose value cannot be used, and never the value, which may hold a password.
    pub(crate) fn to(&self, destination: &Uri) -> Result<Option<Proxy>, String> {
        let secure = destination.scheme_str() != Some("http");
        let Some(setting) = (if secure { &self.https } else { &self.http }) else { return Ok(None) };
        let port = destination.port_u16().unwrap_or(if secure { 443 } else { 80 });
        let no = exceptions(&self.no, port);
        // Whether the destination is an exception does not hang on the proxy being one that can be used.
        let some = Matcher::builder().all("http://proxy").no(&no).build();
        if some.intercept(destination).is_none() {
            return Ok(None);
        }
        let Setting { variable, value } = setting;
        let with_scheme = if value.contains("://") { value.clone() } else { format!("http://{value}") };
        let unusable = || {
            format!(
                "{variable} is not the URL of a proxy; write http://HOST:PORT or http://USER:PASSWORD@HOST:PORT, with special \
                 characters percent-encoded"
            )
        };
        let full: Uri = with_scheme.parse().map_err(|_| unusable())?;
        if full.authority().is_none_or(|authority| !is_whole(authority)) {
            return Err(unusable());
        }
        match full.scheme_str() {
            Some("http" | "https") => {}
            Some(scheme @ ("socks" | "socks4" | "socks4a" | "socks5" | "socks5h")) => {
                return Err(format!(
                    "{variable} names a {scheme} proxy, which bastion does not speak; name an HTTP proxy, or write the host \
                     into NO_PROXY"
                ));
            }
            _ => return Err(unusable()),
        }
        let found = Matcher::builder().all(&with_scheme).build().intercept(destination).ok_or_else(unusable)?;
        if found.uri().host().is_none_or(str::is_empty) {
            return Err(unusable());
        }
        Ok(Some(Proxy { uri: found.uri().clone(), authorization: found.basic_auth().cloned(), variable, full }))
    }
}

/// Whether the host of an authority is its host, and its port a number: a second @ would make a part of the password look like a
/// part of the host, and a # in the password would make it look like a port.
fn is_whole(authority: &Authority) -> bool {
    let text = authority.as_str();
    let place = text.rsplit_once('@').map_or(text, |(_, place)| place);
    let names_port = place.rsplit_once(':').is_some_and(|(host, _)| !host.contains(':') || host.ends_with(']'));
    text.matches('@').count() <= 1 && (!names_port || authority.port_u16().is_some())
}

/// `NO_PROXY` as the matcher takes it: separated by commas, `*.domain` as `.domain`, and an entry with a port only where
/// that is the port of the destination.
fn exceptions(no: &str, port: u16) -> String {
    let mut all = NEVER.to_owned();
    for entry in no.split([',', ' ', '\t']).filter(|entry| !entry.is_empty()) {
        let (host, wanted) = match entry.rsplit_once(':') {
            Some((host, digits)) if !host.contains(':') || host.ends_with(']') => match digits.parse::<u16>() {
                Ok(wanted) => (host, Some(wanted)),
                Err(_) => (entry, None),
            },
            _ => (entry, None),
        };
        if wanted.is_none_or(|wanted| wanted == port) {
            let host = host.trim_matches(['[', ']']);
            all.push(',');
            all.push_str(if host.starts_with("*.") { &host[1..] } else { host });
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn to(variables: &[(&str, &str)], destination: &str) -> Result<Option<Proxy>, String> {
        let variables: BTreeMap<&str, &str> = variables.iter().copied().collect();
        Proxies::new(|name| variables.get(name).map(|value| (*value).to_owned())).to(&destination.parse().unwrap())
    }

    fn shown(variables: &[(&str, &str)], destination: &str) -> Option<String> {
        to(variables, destination).unwrap().map(|proxy| proxy.to_string())
    }

    const SSM: &str = "https://ssm.eu-west-1.amazonaws.com/";

    #[test]
    fn each_variable_in_both_cases() {
        for (variables, proxy) in [
            (&[("HTTPS_PROXY", "http://p:3128")][..], Some("the proxy http://p:3128 (HTTPS_PROXY)")),
            (&[("https_proxy", "http://p:3128/")], Some("the proxy http://p:3128 (https_proxy)")),
            (&[("ALL_PROXY", "https://p:1")], Some("the proxy https://p:1 (ALL_PROXY)")),
            (&[("all_proxy", "p:1")], Some("the proxy http://p:1 (all_proxy)")),
            (
                &[("https_proxy", "http://a:1"), ("HTTPS_PROXY", "http://b:1")],
                Some("the proxy http://a:1 (https_proxy)"),
            ),
            (&[("https_proxy", ""), ("HTTPS_PROXY", "http://b:1"), ("ALL_PROXY", "http://c:1")], None),
            (&[("HTTP_PROXY", "http://p:3128")], None),
            (&[], None),
        ] {
            assert_eq!(shown(variables, SSM).as_deref(), proxy, "{variables:?}");
        }
        let http = [("http_proxy", "http://p:3128"), ("HTTPS_PROXY", "http://q:1")];
        assert_eq!(shown(&http, "http://api.corp:8000/").as_deref(), Some("the proxy http://p:3128 (http_proxy)"));
    }

    #[test]
    fn exceptions_are_those_of_curl_and_of_aws() {
        let reached = |no: &str, destination: &str| {
            shown(&[("ALL_PROXY", "http://p:1"), ("NO_PROXY", no)], destination).is_none()
        };
        for (no, destination, directly) in [
            ("", SSM, false),
            ("*", SSM, true),
            ("amazonaws.com", SSM, true),
            (".amazonaws.com", SSM, true),
            ("x, *.amazonaws.com", SSM, true),
            ("x SSM.eu-west-1.AMAZONAWS.com", SSM, true),
            ("amazonaws.com:443", SSM, true),
            ("amazonaws.com:8443", SSM, false),
            ("azonaws.com", SSM, false),
            ("10.0.0.0/8", "https://10.1.2.3/", true),
            ("10.0.0.0/8", "https://11.1.2.3/", false),
            ("[fd12::1]:443", "https://[fd12::1]/", true),
            ("fd12::/16", "https://[fd12::9]/", true),
            // Never, whatever is said.
            ("", "http://169.254.170.2/v2/credentials", true),
            ("", "http://169.254.169.254/latest", true),
            ("", "http://[fd00:ec2::23]/v1/credentials", true),
            ("", "http://127.0.0.1:4566/", true),
            ("", "http://localhost:4566/", true),
            ("", "http://[::1]:4566/", true),
        ] {
            assert_eq!(reached(no, destination), directly, "{no} {destination}");
        }
    }

    #[test]
    fn user_and_password_are_sent_and_never_shown() {
        let proxy = to(&[("HTTPS_PROXY", "http://al%40ice:S3%3ACRET@p:3128")], SSM).unwrap().unwrap();
        assert_eq!(proxy.authorization.as_ref().unwrap().as_bytes(), b"Basic YWxAaWNlOlMzOkNSRVQ=");
        assert!(proxy.authorization.as_ref().unwrap().is_sensitive());
        assert_eq!(proxy.to_string(), "the proxy http://p:3128 (HTTPS_PROXY)");
        assert!(!format!("{proxy:?}").contains("S3"));
    }

    #[test]
    fn what_is_no_http_proxy_is_refused_where_it_would_be_used() {
        for value in [
            "http://",
            "ftp://S3CRET@p",
            "http://u:S3CRET@CRET@p:1",
            "http://u:S3CRET#x@p:1",
            "http://p:port",
            "htps://p",
        ] {
            let said = to(&[("HTTPS_PROXY", value)], SSM).unwrap_err();
            assert!(
                said.starts_with("HTTPS_PROXY is not the URL of a proxy") && !said.contains("CRET"),
                "{value}: {said}"
            );
        }
        let socks = [("ALL_PROXY", "socks5h://u:S3CRET@p:1080"), ("NO_PROXY", "corp")];
        let said = to(&socks, SSM).unwrap_err();
        assert!(said.starts_with("ALL_PROXY names a socks5h proxy") && !said.contains("S3CRET"), "{said}");
        assert!(to(&socks, "https://api.corp/").unwrap().is_none());
        assert!(to(&socks, "http://169.254.169.254/").unwrap().is_none());
    }
}
