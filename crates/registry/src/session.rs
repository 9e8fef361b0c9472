//! What is said to one registry about one repository.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use address::Reach;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use reqwest::header::{
    ACCEPT, AUTHORIZATION, HeaderValue, LOCATION, RANGE, RETRY_AFTER, WWW_AUTHENTICATE,
};
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde::Deserialize;
use tokio::sync::Mutex;
use url::Url;
use wire::text::Secret;
use zeroize::Zeroizing;

use crate::challenge::{self, Challenge};
use crate::credentials::{Credentials, Login};
use crate::error::PullError;
use crate::name::{NameError, Source};
use crate::policy::{Allow, Contact, Purpose};
use crate::progress::Progress;
use crate::retry;
use crate::shown::shown;
use crate::upstream::{NotPublic, Upstream, reason};

const MOST_REDIRECTS: usize = 5;
/// The longest answer of a token service that is read, in bytes.
const LONGEST_TOKEN: usize = 256 << 10;
/// As much of a complaint as is read.
const LONGEST_COMPLAINT: usize = 16 << 10;
/// What token services want to be told.
const CLIENT_ID: &str = "sandforge";

/// How a request ended that brought nothing.
#[derive(Debug)]
pub(crate) enum Fault {
    /// It may be made again, after this time where the other side said one.
    Again(PullError, Option<Duration>),
    /// It may not.
    Final(PullError),
}

impl From<PullError> for Fault {
    fn from(error: PullError) -> Self {
        Self::Final(error)
    }
}

/// How often it was tried without getting further.
#[derive(Debug, Default)]
pub(crate) struct Patience {
    failed: u32,
}

impl Patience {
    /// It went on.
    pub(crate) fn restore(&mut self) {
        self.failed = 0;
    }

    /// Waits for the next try.
    ///
    /// # Errors
    /// Where there is none.
    pub(crate) async fn wait(
        &mut self,
        fault: Fault,
        session: &Session<'_>,
    ) -> Result<(), PullError> {
        let (error, after) = match fault {
            Fault::Final(error) => return Err(error),
            Fault::Again(error, after) => (error, after),
        };
        let host = || session.host.clone();
        self.failed += 1;
        if let Some(wait) = after.filter(|wait| *wait > retry::PATIENCE) {
            return Err(PullError::Busy { host: host(), wait });
        }
        if self.failed >= retry::ATTEMPTS {
            let (attempts, last) = (self.failed, Box::new(error));
            return Err(PullError::GaveUp { host: host(), attempts, last });
        }
        let pause = retry::pause(self.failed).max(after.unwrap_or_default());
        if pause > Duration::from_secs(1) {
            session.progress.notice(&format!("{error}; trying again in {} s", pause.as_secs()));
        }
        tokio::time::sleep(pause).await;
        Ok(())
    }
}

/// A registry, its repository, and who we are there.
pub(crate) struct Session<'a> {
    pub(crate) source: &'a Source,
    pub(crate) progress: &'a dyn Progress,
    upstream: &'a Upstream,
    policy: &'a dyn Allow,
    credentials: &'a Credentials,
    /// Who stands for the registry.
    host: String,
    base: Url,
    pass: Mutex<Pass>,
    /// Whether it has answered: who has not is not asked again and again.
    met: AtomicBool,
}

/// What the registry lets us in with.
#[derive(Default)]
struct Pass {
    header: Option<HeaderValue>,
    /// How many there were.
    count: u64,
    who: Option<String>,
}

impl<'a> Session<'a> {
    pub(crate) fn new(
        source: &'a Source,
        upstream: &'a Upstream,
        policy: &'a dyn Allow,
        credentials: &'a Credentials,
        progress: &'a dyn Progress,
    ) -> Result<Self, PullError> {
        let host = upstream.endpoint(source.registry()).to_owned();
        let scheme = if upstream.is_plain(&host) { "http" } else { "https" };
        let base = Url::parse(&format!("{scheme}://{host}/v2/{}/", source.repository()))
            .map_err(|_| NameError::Registry(host.clone()))?;
        Ok(Self {
            source,
            progress,
            upstream,
            policy,
            credentials,
            host,
            base,
            pass: Mutex::default(),
            met: AtomicBool::new(false),
        })
    }

    /// The registry, as messages call it.
    pub(crate) fn registry(&self) -> String {
        self.source.registry().to_owned()
    }

    /// Whether the registry may be asked.
    pub(crate) fn allowed(&self) -> Result<(), PullError> {
        self.allow(&self.host, Purpose::Registry)
    }

    /// Asks for `path` of the repository, from this byte on, and follows where the registry sends.
    /// What comes back is 200, 206 or 416.
    pub(crate) async fn get(
        &self,
        path: &str,
        accept: Option<&str>,
        from: u64,
    ) -> Result<Response, Fault> {
        let url = self.base.join(path).map_err(|_| NameError::Repository(path.into()));
        let first = url.map_err(PullError::from)?;
        self.allowed()?;
        let mut refused = false;
        loop {
            let (pass, count) = {
                let pass = self.pass.lock().await;
                (pass.header.clone(), pass.count)
            };
            let response = self.follow(&first, pass, accept, from).await?;
            let status = response.status();
            if matches!(status.as_u16(), 200 | 206 | 416) {
                return Ok(response);
            }
            if status == StatusCode::UNAUTHORIZED && !refused && self.is_own(response.url()) {
                refused = true;
                let challenge = self.challenge(&response)?;
                self.authorise(&challenge, count).await?;
                continue;
            }
            return Err(self.complaint(response, path).await);
        }
    }

    /// Whether this is the registry itself.
    fn is_own(&self, url: &Url) -> bool {
        url.origin() == self.base.origin()
    }

    fn allow(&self, host: &str, purpose: Purpose) -> Result<(), PullError> {
        let contact = Contact { source: self.source, host, purpose };
        let denied = |reason| PullError::Denied { host: host.into(), reason };
        self.policy.allow(&contact).map_err(denied)
    }

    /// One request with all its redirects. The pass goes to the registry alone: once it has sent
    /// elsewhere, nobody gets it.
    async fn follow(
        &self,
        first: &Url,
        mut pass: Option<HeaderValue>,
        accept: Option<&str>,
        from: u64,
    ) -> Result<Response, Fault> {
        let mut url = first.clone();
        // Who is on the internet sends nobody to where only we get.
        let mut only_public = false;
        for _ in 0..=MOST_REDIRECTS {
            let client = self.upstream.client(url.scheme() == "http", only_public);
            let mut request = client.request(Method::GET, url.clone());
            if let Some(pass) = &pass {
                request = request.header(AUTHORIZATION, pass);
            }
            if let Some(accept) = accept {
                request = request.header(ACCEPT, accept);
            }
            if from > 0 {
                request = request.header(RANGE, format!("bytes={from}-"));
            }
            let response = self.send(request, &url).await?;
            if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
                return Ok(response);
            }
            let host = authority(&url);
            let wrong = |why: &str| PullError::Redirect { host: host.clone(), why: why.into() };
            let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
            let location = location.ok_or_else(|| wrong("without saying where"))?;
            let next = url.join(location).map_err(|_| wrong("to something that is no URL"))?;
            if !next.username().is_empty() || next.password().is_some() || !next.has_host() {
                return Err(wrong("to a URL with a name or password in it").into());
            }
            if next.origin() != url.origin() {
                let to = authority(&next);
                match next.scheme() {
                    "https" => {}
                    "http" if self.upstream.is_plain(&to) => {}
                    _ => return Err(PullError::Plain { from: host, to }.into()),
                }
                self.allow(&to, Purpose::Redirect)?;
                pass = None;
                let from = response.remote_addr();
                only_public |= from.is_some_and(|from| address::reach(from.ip()) == Reach::Public);
                if let Some(why) =
                    NotPublic::of_url(&next).filter(|_| only_public && next.scheme() == "https")
                {
                    return Err(wrong(&format!("to {why}")).into());
                }
            }
            url = next;
        }
        let why = format!("more than {MOST_REDIRECTS} times");
        Err(PullError::Redirect { host: self.host.clone(), why }.into())
    }

    fn request(&self, method: Method, url: &Url) -> RequestBuilder {
        self.upstream.client(url.scheme() == "http", false).request(method, url.clone())
    }

    async fn send(&self, request: RequestBuilder, url: &Url) -> Result<Response, Fault> {
        match request.send().await {
            Ok(response) => {
                self.met.store(true, Ordering::Relaxed);
                match again(&response) {
                    Some(after) => {
                        let error = status(response, authority(url)).await;
                        Err(Fault::Again(error, after))
                    }
                    None => Ok(response),
                }
            }
            Err(error) => Err(self.broken(&error, url)),
        }
    }

    /// A connection that was not made, or broke.
    fn broken(&self, error: &reqwest::Error, url: &Url) -> Fault {
        let (host, reason) = (authority(url), reason(error));
        if let Some(why) = NotPublic::of(error) {
            let (host, why) = (self.host.clone(), format!("to {why}"));
            return Fault::Final(PullError::Redirect { host, why });
        }
        match self.met.load(Ordering::Relaxed) {
            true => Fault::Again(PullError::Broken { host, reason }, None),
            false => Fault::Final(PullError::Unreachable { host, reason }),
        }
    }

    /// A body that stopped coming.
    pub(crate) fn cut(&self, reason: String) -> Fault {
        Fault::Again(PullError::Broken { host: self.host.clone(), reason }, None)
    }

    /// A whole body that is no longer than `most`.
    pub(crate) async fn body(
        &self,
        mut response: Response,
        what: &str,
        most: usize,
    ) -> Result<Vec<u8>, Fault> {
        let mut body = Vec::new();
        loop {
            match response.chunk().await {
                Ok(None) => return Ok(body),
                Ok(Some(chunk)) if body.len() + chunk.len() <= most => {
                    body.extend_from_slice(&chunk);
                }
                Ok(Some(_)) => {
                    return Err(Fault::Final(PullError::Length {
                        registry: self.registry(),
                        what: what.into(),
                        wanted: most as u64,
                        got: "longer".into(),
                    }));
                }
                Err(error) => return Err(self.cut(reason(&error))),
            }
        }
    }

    fn challenge(&self, response: &Response) -> Result<Challenge, PullError> {
        let values = response.headers().get_all(WWW_AUTHENTICATE).iter();
        challenge::parse(values.filter_map(|value| value.to_str().ok()))
            .map_err(|source| PullError::Challenge { registry: self.registry(), source })
    }

    /// Gets a pass in place of the one that was refused, unless somebody else has one by now.
    async fn authorise(&self, challenge: &Challenge, refused: u64) -> Result<(), Fault> {
        let mut pass = self.pass.lock().await;
        if pass.count != refused {
            return Ok(());
        }
        let name = self.upstream.login(&self.host);
        let login = self.credentials.find(name, self.source.repository()).await;
        let login =
            login.map_err(|source| PullError::Credentials { registry: self.registry(), source })?;
        pass.who = login.as_ref().map(|login| match login {
            Login::Password { user, .. } => shown(user),
            Login::Identity(_) | Login::Bearer(_) => "the owner of the token".into(),
        });
        let header = match (challenge, login) {
            (_, Some(Login::Bearer(token))) => bearer(token.expose()),
            (Challenge::Basic, Some(Login::Password { user, password })) => {
                Some(basic(&user, &password))
            }
            (Challenge::Basic, _) => return Err(self.refused(String::new(), pass.who.as_deref())),
            (Challenge::Bearer { realm, service }, login) => {
                let token = self.token(realm, service.as_deref(), login, pass.who.as_deref());
                bearer(token.await?.expose())
            }
        };
        let header = header.ok_or_else(|| self.cut("its token cannot be sent back".into()));
        pass.header = Some(header?);
        pass.count += 1;
        Ok(())
    }

    /// A token from whoever gives them for this registry.
    async fn token(
        &self,
        realm: &Url,
        service: Option<&str>,
        login: Option<Login>,
        who: Option<&str>,
    ) -> Result<Secret, Fault> {
        let host = authority(realm);
        if !self.upstream.is_realm(&self.host, &host) {
            return Err(PullError::Realm { registry: self.host.clone(), realm: host }.into());
        }
        if realm.scheme() != "https" && !self.upstream.is_plain(&host) {
            return Err(PullError::Plain { from: self.host.clone(), to: host }.into());
        }
        self.allow(&host, Purpose::Token)?;
        // What we want, not what the registry would have us want.
        let scope = format!("repository:{}:pull", self.source.repository());
        let mut fields = vec![("scope", scope.as_str())];
        fields.extend(service.map(|service| ("service", service)));
        let mut asked = realm.clone();
        let request = if let Some(Login::Identity(token)) = &login {
            let token = std::str::from_utf8(token.expose()).unwrap_or_default();
            fields.extend([
                ("grant_type", "refresh_token"),
                ("client_id", CLIENT_ID),
                ("refresh_token", token),
            ]);
            let mut form = url::form_urlencoded::Serializer::new(String::with_capacity(16 << 10));
            let form = Zeroizing::new(form.extend_pairs(fields).finish());
            self.request(Method::POST, realm)
                .header("Content-Type", "application/x-www-form-urlencoded")
                .body(form.as_bytes().to_vec())
        } else {
            asked.query_pairs_mut().extend_pairs(fields);
            let request = self.request(Method::GET, &asked);
            match &login {
                Some(Login::Password { user, password }) => {
                    request.header(AUTHORIZATION, basic(user, password))
                }
                _ => request,
            }
        };
        let response = self.send(request, realm).await?;
        match response.status().as_u16() {
            200 => {}
            400 | 401 | 403 => {
                let said = said(response).await;
                return Err(self.refused(said, who));
            }
            _ => return Err(status(response, host).await.into()),
        }
        let body = Zeroizing::new(self.body(response, "a token", LONGEST_TOKEN).await?);
        #[derive(Deserialize)]
        struct Answer {
            token: Option<Secret>,
            access_token: Option<Secret>,
        }
        let answer: Option<Answer> = serde_json::from_slice(&body).ok();
        let token = answer.and_then(|answer| answer.token.or(answer.access_token));
        token.filter(|token| !token.expose().is_empty()).ok_or_else(|| {
            let said = ": no token, where one was asked for".into();
            PullError::Status { host, status: 200, said }.into()
        })
    }

    fn refused(&self, said: String, who: Option<&str>) -> Fault {
        let help = match who {
            Some(_) => "it may be the wrong login, or not yours to read",
            None => "log in with `docker login`, or put the login into ~/.docker/config.json",
        };
        Fault::Final(PullError::Unauthorized {
            registry: self.registry(),
            who: who.unwrap_or("somebody without a name").into(),
            repository: self.source.repository().into(),
            said,
            help,
        })
    }

    /// What an answer means that is none of those that were hoped for.
    async fn complaint(&self, response: Response, path: &str) -> Fault {
        let code = response.status().as_u16();
        if !self.is_own(response.url()) || !matches!(code, 401 | 403 | 404) {
            let host = authority(response.url());
            return status(response, host).await.into();
        }
        let said = said(response).await;
        if code == 404 {
            let name = path.rsplit('/').next().unwrap_or(path);
            let between = if name.contains(':') { '@' } else { ':' };
            let what = format!("{}{between}{name}", self.source.repository());
            return PullError::NotFound { registry: self.registry(), what, said }.into();
        }
        let who = self.pass.lock().await.who.clone();
        self.refused(said, who.as_deref())
    }
}

/// Whether the answer is one that another try may better, and what it says about when.
fn again(response: &Response) -> Option<Option<Duration>> {
    if !matches!(response.status().as_u16(), 408 | 429 | 500 | 502 | 503 | 504) {
        return None;
    }
    let value = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok());
    Some(value.and_then(|value| retry::after(value, SystemTime::now())))
}

async fn status(response: Response, host: String) -> PullError {
    let status = response.status().as_u16();
    PullError::Status { host, status, said: said(response).await }
}

/// What the other side says about its refusal, in a line.
async fn said(mut response: Response) -> String {
    #[derive(Deserialize)]
    struct Complaint {
        errors: Vec<Message>,
    }
    #[derive(Deserialize)]
    struct Message {
        message: Option<String>,
        code: Option<String>,
    }
    let mut body = Vec::new();
    while body.len() < LONGEST_COMPLAINT {
        match tokio::time::timeout(Duration::from_secs(5), response.chunk()).await {
            Ok(Ok(Some(chunk))) => body.extend_from_slice(&chunk),
            _ => break,
        }
    }
    let complaint = serde_json::from_slice::<Complaint>(&body).ok();
    let first = complaint.and_then(|complaint| complaint.errors.into_iter().next());
    let text = first.and_then(|first| first.message.filter(|text| !text.is_empty()).or(first.code));
    text.map(|text| format!(": {}", shown(&text))).unwrap_or_default()
}

/// `host`, with the port where it is not that of the scheme.
fn authority(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    let host = host.strip_suffix('.').unwrap_or(host);
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

fn basic(user: &str, password: &Secret) -> HeaderValue {
    let mut plain = Zeroizing::new(Vec::with_capacity(user.len() + password.expose().len() + 1));
    plain.extend_from_slice(user.as_bytes());
    plain.push(b':');
    plain.extend_from_slice(password.expose());
    let encoded =
        Zeroizing::new(format!("Basic {}", Zeroizing::new(BASE64.encode(&plain)).as_str()));
    let mut header = HeaderValue::from_str(&encoded).expect("base64 is of letters");
    header.set_sensitive(true);
    header
}

fn bearer(token: &[u8]) -> Option<HeaderValue> {
    let text = Zeroizing::new([b"Bearer ", token].concat());
    let mut header = HeaderValue::from_bytes(&text).ok()?;
    header.set_sensitive(true);
    Some(header)
}
