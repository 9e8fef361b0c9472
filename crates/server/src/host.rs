//! Which names this server answers to, and which web pages may call it.
//!
//! A page that a browser loaded from elsewhere can make it send requests here, and a name that
//! somebody else controls can be made to resolve to a loopback address. The first is told by
//! Origin, the second by Host.

use std::net::Ipv6Addr;

use api::{Code, Problem};
use http::header::{HOST, ORIGIN};
use http::{HeaderMap, HeaderName, HeaderValue, Uri};

const LOOPBACK: [&str; 3] = ["localhost", "127.0.0.1", "[::1]"];
const FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// What is allowed.
#[derive(Debug, Clone)]
pub(crate) struct Allowed {
    hosts: Vec<String>,
    origins: Vec<String>,
}

impl Allowed {
    pub(crate) fn new(hosts: &[String], origins: &[String]) -> Self {
        let spelled = |host: &String| match host.parse::<Ipv6Addr>() {
            Ok(address) => format!("[{address}]"),
            Err(_) => host.to_ascii_lowercase(),
        };
        let loopback = LOOPBACK.iter().map(|&host| host.to_owned());
        let origin = |origin: &String| origin.trim_end_matches('/').to_ascii_lowercase();
        Self {
            hosts: loopback.chain(hosts.iter().map(spelled)).collect(),
            origins: origins.iter().map(origin).collect(),
        }
    }

    /// Looks at Host, Origin and Sec-Fetch-Site. Gives the origin of another site that is
    /// allowed, which has to be named in the answer.
    pub(crate) fn check(
        &self,
        uri: &Uri,
        headers: &HeaderMap,
    ) -> Result<Option<HeaderValue>, Problem> {
        let authority = authority(uri, headers)?;
        if !self.hosts.iter().any(|host| *host == host_of(&authority)) {
            return Err(Problem::new(
                Code::HostRefused,
                "this server does not answer to the name in the Host header",
            )
            .with_field("Host")
            .with_remedy("call it as `localhost`, or start it with --host NAME"));
        }
        let Some(origin) = single(headers, &ORIGIN)? else {
            // Browsers leave Origin out of plain navigation, but tell from where it comes.
            return match headers.get(&FETCH_SITE).map(HeaderValue::as_bytes) {
                None | Some(b"same-origin" | b"none") => Ok(None),
                Some(_) => Err(foreign("Sec-Fetch-Site")),
            };
        };
        let text = origin.to_str().unwrap_or_default().to_ascii_lowercase();
        if text == format!("https://{authority}") {
            return Ok(None);
        }
        match self.origins.contains(&text) {
            true => Ok(Some(origin.clone())),
            false => Err(foreign("Origin")),
        }
    }
}

fn foreign(header: &str) -> Problem {
    Problem::new(Code::OriginRefused, "a page of another site may not call this server")
        .with_field(header)
        .with_remedy("call from a program, or start the server with --origin")
}

/// The one value of a header that may not be there twice.
pub(crate) fn single<'a>(
    headers: &'a HeaderMap,
    name: &HeaderName,
) -> Result<Option<&'a HeaderValue>, Problem> {
    let mut values = headers.get_all(name).iter();
    let first = values.next();
    match values.next() {
        None => Ok(first),
        Some(_) => Err(Problem::invalid(name.as_str(), "must not be there twice")),
    }
}

/// The name and port that the client called, in small letters. Where the request's target names
/// one too, as in HTTP/2, they have to be the same.
fn authority(uri: &Uri, headers: &HeaderMap) -> Result<String, Problem> {
    let header = single(headers, &HOST)?
        .map(|host| host.to_str().map(str::to_ascii_lowercase))
        .transpose()
        .map_err(|_| Problem::invalid("Host", "must be a name or an address"))?;
    let target = uri.authority().map(|authority| authority.as_str().to_ascii_lowercase());
    match (header, target) {
        (Some(header), Some(target)) if header != target => {
            Err(Problem::invalid("Host", "must be what the request's target names"))
        }
        (Some(one), _) | (None, Some(one)) => Ok(one),
        (None, None) => Err(Problem::invalid("Host", "must be there")),
    }
}

/// Without the port.
fn host_of(authority: &str) -> &str {
    match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => authority,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(allowed: &Allowed, lines: &[(&'static str, &str)]) -> Result<bool, Code> {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, value.parse().unwrap());
        }
        let checked = allowed.check(&Uri::from_static("/v1/sandboxes"), &headers);
        checked.map(|origin| origin.is_some()).map_err(|problem| problem.code)
    }

    fn loopback() -> Allowed {
        Allowed::new(&[], &[])
    }

    #[test]
    fn loopback_names_are_answered_to_with_any_port() {
        for host in ["localhost", "LOCALHOST:8585", "127.0.0.1:1", "[::1]", "[::1]:8585"] {
            assert_eq!(check(&loopback(), &[("host", host)]), Ok(false), "{host}");
        }
    }

    #[test]
    fn other_names_are_not() {
        for host in
            ["evil.example", "localhost.evil.example", "127.0.0.2", "0.0.0.0", "[::2]:8585", ""]
        {
            assert_eq!(check(&loopback(), &[("host", host)]), Err(Code::HostRefused), "{host}");
        }
        assert_eq!(check(&loopback(), &[]), Err(Code::InvalidRequest));
    }

    #[test]
    fn two_hosts_are_none() {
        let twice = [("host", "localhost"), ("host", "localhost")];
        assert_eq!(check(&loopback(), &twice), Err(Code::InvalidRequest));
        let mut headers = HeaderMap::new();
        headers.insert(HOST, HeaderValue::from_static("localhost"));
        let target = Uri::from_static("http://evil.example/");
        let checked = loopback().check(&target, &headers);
        assert_eq!(checked.unwrap_err().code, Code::InvalidRequest);
    }

    #[test]
    fn a_page_of_another_site_is_refused() {
        for origin in ["https://evil.example", "null", "https://localhost:1", "http://localhost"] {
            let request = [("host", "localhost:8585"), ("origin", origin)];
            assert_eq!(check(&loopback(), &request), Err(Code::OriginRefused), "{origin}");
        }
        let navigation = [("host", "localhost"), ("sec-fetch-site", "cross-site")];
        assert_eq!(check(&loopback(), &navigation), Err(Code::OriginRefused));
    }

    #[test]
    fn a_page_of_the_same_origin_and_one_that_is_configured_may_call() {
        let own = [("host", "localhost:8585"), ("origin", "https://localhost:8585")];
        assert_eq!(check(&loopback(), &own), Ok(false));
        let allowed = Allowed::new(&["Build.Example".into()], &["https://App.example/".into()]);
        let configured = [("host", "build.example"), ("origin", "https://app.example")];
        assert_eq!(check(&allowed, &configured), Ok(true));
    }
}
