//! Who we are, and to whom we say it.

use std::sync::atomic::{AtomicUsize, Ordering};

use registry::{Credentials, Login, PullError, Purpose};

use crate::bench::{Bench, Image};
use crate::server::{Reply, Server};

const PASSWORD: &str = "correct horse";

fn secret(text: &str) -> wire::text::Secret {
    wire::text::Secret::new(text.into()).unwrap()
}

fn login() -> Credentials {
    Credentials::of(Login::Password { user: "me".into(), password: secret(PASSWORD) })
}

/// `me:correct horse`.
const BASIC: &str = "Basic bWU6Y29ycmVjdCBob3JzZQ==";

fn assert_tells_nothing(error: &PullError, bench: &Bench) {
    let all = format!("{error} {error:?} {:?}", bench.credentials);
    for hidden in [PASSWORD, "bWU6Y29y", "TOKEN"] {
        assert!(!all.contains(hidden), "{all}");
    }
}

#[tokio::test]
async fn a_password_is_said_where_it_is_asked_for() {
    let server = Server::plain().await;
    Image::of(&[10, 20]).push(&server, "1");
    server.answer(|asked, usual| match asked.authorization.as_deref() {
        Some(BASIC) => usual,
        _ => Some(Reply::new(401).with("www-authenticate", "Basic realm=\"r\"")),
    });
    let mut bench = Bench::new(&[&server]);
    let error = bench.one(&server).await.unwrap_err();
    assert!(error.to_string().contains("docker login"), "{error}");
    bench.credentials = login();
    bench.one(&server).await.unwrap();
    let asked = server.asked();
    // Once without a name for each of the two pulls, and from then on with it.
    assert_eq!(asked.iter().filter(|asked| asked.authorization.is_none()).count(), 2);
    let wrong = Login::Password { user: "me".into(), password: secret("TOKEN wrong") };
    let mut bench = Bench::new(&[&server]);
    bench.credentials = Credentials::of(wrong);
    let error = bench.one(&server).await.unwrap_err();
    assert!(matches!(error, PullError::Unauthorized { .. }), "{error}");
    assert_tells_nothing(&error, &bench);
}

/// A registry that wants a token which this realm gives, and who gives it.
fn wants_token(server: &Server, realm: &str) {
    let challenge = format!(
        "Bearer realm=\"{realm}\",service=\"the service\",scope=\"repository:a/b:pull,push registry:catalog:*\""
    );
    server.answer(move |asked, usual| match asked.authorization.as_deref() {
        _ if asked.path == "/token" => Some(Reply::of(r#"{"token":"TOKEN-1"}"#)),
        Some("Bearer TOKEN-1") => usual,
        _ => Some(Reply::new(401).with("www-authenticate", challenge.clone())),
    });
}

#[tokio::test]
async fn a_token_of_the_registry_itself_is_asked_for_and_used() {
    let server = Server::plain().await;
    let image = Image::of(&[10, 20]);
    image.push(&server, "1");
    wants_token(&server, &format!("http://{}/token", server.host));
    let mut bench = Bench::new(&[&server]);
    bench.credentials = login();
    bench.one(&server).await.unwrap();
    bench.assert_has(&image);
    let asked = server.asked();
    let tokens: Vec<_> = asked.iter().filter(|asked| asked.path == "/token").collect();
    assert_eq!(tokens.len(), 1, "one for all of it");
    // Only what is needed, whatever the registry would have had us ask for.
    assert_eq!(tokens[0].query, "scope=repository%3Aa%2Fb%3Apull&service=the+service");
    assert_eq!(tokens[0].authorization.as_deref(), Some(BASIC));
    let others = asked.iter().filter(|asked| asked.path != "/token");
    assert!(others.into_iter().all(|asked| asked.authorization.as_deref() != Some(BASIC)));
    let contacts = bench.policy.contacts.lock().unwrap();
    assert!(contacts.contains(&(server.host.clone(), Purpose::Token)), "{contacts:?}");
}

#[tokio::test]
async fn a_realm_elsewhere_is_refused_unless_it_is_named() {
    let (server, realm) = (Server::plain().await, Server::plain().await);
    let image = Image::of(&[10]);
    image.push(&server, "1");
    wants_token(&server, &format!("http://{}/token", realm.host));
    realm.answer(|_, _| Some(Reply::of(r#"{"access_token":"TOKEN-1","expires_in":60}"#)));
    let mut bench = Bench::new(&[&server, &realm]);
    bench.credentials = login();
    let error = bench.one(&server).await.unwrap_err();
    assert!(matches!(error, PullError::Realm { .. }), "{error}");
    let help = format!("[realms] \"{}\" = [\"{}\"]", server.host, realm.host);
    assert!(error.to_string().contains(&help), "{error}");
    assert_tells_nothing(&error, &bench);
    assert!(realm.asked().is_empty(), "it was not contacted");
    bench.settings.realms.insert(server.host.clone(), vec![realm.host.clone()]);
    bench.one(&server).await.unwrap();
    bench.assert_has(&image);
    assert_eq!(realm.asked().len(), 1);
}

#[tokio::test]
async fn a_realm_that_is_named_and_has_no_tls_is_refused_unless_that_is_named_too() {
    let (server, realm) = (Server::plain().await, Server::plain().await);
    Image::of(&[10]).push(&server, "1");
    wants_token(&server, &format!("http://{}/token", realm.host));
    let mut bench = Bench::new(&[&server]);
    bench.settings.realms.insert(server.host.clone(), vec![realm.host.clone()]);
    let error = bench.one(&server).await.unwrap_err();
    assert!(matches!(error, PullError::Plain { .. }), "{error}");
    assert!(realm.asked().is_empty());
}

#[tokio::test]
async fn the_policy_is_asked_before_a_realm_is() {
    let (server, realm) = (Server::plain().await, Server::plain().await);
    Image::of(&[10]).push(&server, "1");
    wants_token(&server, &format!("http://{}/token", realm.host));
    let mut bench = Bench::new(&[&server, &realm]);
    bench.settings.realms.insert(server.host.clone(), vec![realm.host.clone()]);
    bench.policy.denied.push(realm.host.clone());
    let error = bench.one(&server).await.unwrap_err();
    assert!(matches!(error, PullError::Denied { .. }), "{error}");
    assert!(realm.asked().is_empty());
}

#[tokio::test]
async fn a_token_service_sends_nobody_on() {
    let (server, other) = (Server::plain().await, Server::plain().await);
    Image::of(&[10]).push(&server, "1");
    let (realm, away) =
        (format!("http://{}/token", server.host), format!("http://{}/token", other.host));
    server.answer(move |asked, _| {
        Some(match asked.path.as_str() {
            "/token" => Reply::new(307).with("location", away.clone()),
            _ => Reply::new(401).with("www-authenticate", format!("Bearer realm=\"{realm}\"")),
        })
    });
    let mut bench = Bench::new(&[&server, &other]);
    bench.credentials = login();
    let error = bench.one(&server).await.unwrap_err();
    assert!(matches!(error, PullError::Status { status: 307, .. }), "{error}");
    assert!(other.asked().is_empty());
}

#[tokio::test]
async fn a_token_that_ends_on_the_way_is_replaced() {
    let server = Server::plain().await;
    let image = Image::of(&[10, 20, 30, 40]);
    image.push(&server, "1");
    let challenge = format!("Bearer realm=\"http://{}/token\"", server.host);
    let given = AtomicUsize::new(0);
    let used = AtomicUsize::new(0);
    server.answer(move |asked, usual| {
        if asked.path == "/token" {
            let count = given.fetch_add(1, Ordering::SeqCst) + 1;
            used.store(0, Ordering::SeqCst);
            return Some(Reply::of(format!("{{\"token\":\"TOKEN-{count}\"}}")));
        }
        let good = format!("Bearer TOKEN-{}", given.load(Ordering::SeqCst));
        let is_good = asked.authorization.as_deref() == Some(&good);
        match is_good && used.fetch_add(1, Ordering::SeqCst) < 3 {
            true => usual,
            false => Some(Reply::new(401).with("www-authenticate", challenge.clone())),
        }
    });
    let mut bench = Bench::new(&[&server]);
    bench.limits.parallel = 1;
    bench.one(&server).await.unwrap();
    bench.assert_has(&image);
    assert_eq!(server.count("/token"), 2);
}

#[tokio::test]
async fn an_identity_token_goes_in_the_body_to_the_token_service_alone() {
    let server = Server::plain().await;
    Image::of(&[10]).push(&server, "1");
    wants_token(&server, &format!("http://{}/token", server.host));
    let mut bench = Bench::new(&[&server]);
    bench.credentials = Credentials::of(Login::Identity(secret("REFRESH/1")));
    bench.one(&server).await.unwrap();
    let asked = server.asked();
    let token = asked.iter().find(|asked| asked.path == "/token").unwrap();
    assert_eq!((token.method.as_str(), token.query.as_str()), ("POST", ""));
    assert!(token.body.contains("grant_type=refresh_token"), "{}", token.body);
    assert!(token.body.contains("refresh_token=REFRESH%2F1"), "{}", token.body);
    assert!(
        asked.iter().all(|one| one.path == "/token" || !format!("{one:?}").contains("REFRESH"))
    );
}

#[tokio::test]
async fn a_token_for_the_registry_is_used_as_it_is() {
    let server = Server::plain().await;
    Image::of(&[10]).push(&server, "1");
    wants_token(&server, "https://elsewhere.example/token");
    let mut bench = Bench::new(&[&server]);
    bench.credentials = Credentials::of(Login::Bearer(secret("TOKEN-1")));
    bench.one(&server).await.unwrap();
}

#[tokio::test]
async fn an_answer_that_is_no_token_is_said() {
    for body in ["", "{}", r#"{"token":""}"#, "[1]", r#"{"token":17}"#] {
        let server = Server::plain().await;
        let challenge = format!("Bearer realm=\"http://{}/token\"", server.host);
        server.answer(move |asked, _| {
            Some(match asked.path.as_str() {
                "/token" => Reply::of(body),
                _ => Reply::new(401).with("www-authenticate", challenge.clone()),
            })
        });
        let error = Bench::new(&[&server]).one(&server).await.unwrap_err().to_string();
        assert!(error.contains("no token"), "{error}");
    }
}

#[tokio::test]
async fn a_challenge_that_is_not_known_is_said() {
    let server = Server::plain().await;
    server.answer(|_, _| Some(Reply::new(401).with("www-authenticate", "Negotiate")));
    let error = Bench::new(&[&server]).one(&server).await.unwrap_err();
    assert!(matches!(error, PullError::Challenge { .. }), "{error}");
}
