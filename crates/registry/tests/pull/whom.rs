//! Who is asked at all: the policy, TLS, and where a registry sends.

use registry::{Credentials, Digest, Login, PullError, Purpose, Settings, Upstream};

use crate::bench::{Authority, Bench, Image};
use crate::server::{Reply, Server};

fn trusting(bench: &mut Bench, authority: &Authority) {
    let path = bench.directory.path().join("ca.pem");
    std::fs::write(&path, &authority.pem).unwrap();
    bench.settings.ca = Some(path);
}

fn login() -> Credentials {
    let password = wire::text::Secret::new(b"word".to_vec()).unwrap();
    Credentials::of(Login::Password { user: "me".into(), password })
}

#[tokio::test]
async fn who_is_denied_is_not_contacted() {
    let server = Server::plain().await;
    Image::of(&[10]).push(&server, "1");
    let mut bench = Bench::new(&[&server]);
    bench.policy.denied.push(server.host.clone());
    let error = bench.one(&server).await.unwrap_err();
    assert!(matches!(error, PullError::Denied { .. }), "{error}");
    assert!(error.to_string().contains("the rule of the test"), "{error}");
    assert!(server.asked().is_empty());
}

#[tokio::test]
async fn what_is_here_already_is_judged_too() {
    let server = Server::plain().await;
    let image = Image::of(&[10]);
    image.push(&server, "1");
    let mut bench = Bench::new(&[&server]);
    bench.one(&server).await.unwrap();
    bench.policy.denied.push(server.host.clone());
    let error = bench.pull(&server.host, "a/b", &image.digest().to_string()).await.unwrap_err();
    assert!(matches!(error, PullError::Denied { .. }), "{error}");
}

#[tokio::test]
async fn a_registry_without_tls_is_one_that_was_named_so() {
    let server = Server::plain().await;
    Image::of(&[10]).push(&server, "1");
    let bench = Bench::new(&[]);
    let error = bench.one(&server).await.unwrap_err();
    assert!(matches!(error, PullError::Unreachable { .. }), "{error}");
    assert!(server.asked().is_empty());
}

#[tokio::test]
async fn only_an_authority_that_is_configured_vouches() {
    let authority = Authority::new();
    let server = Server::tls(&authority).await;
    let image = Image::of(&[10]);
    image.push(&server, "1");
    let mut bench = Bench::new(&[]);
    let error = bench.one(&server).await.unwrap_err();
    assert!(error.to_string().contains("certificate"), "{error}");
    trusting(&mut bench, &authority);
    bench.one(&server).await.unwrap();
    bench.assert_has(&image);
}

#[tokio::test]
async fn a_file_without_authorities_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ca.pem");
    std::fs::write(&path, "nothing").unwrap();
    for ca in [path, directory.path().join("absent")] {
        let settings = Settings { ca: Some(ca), ..Settings::default() };
        assert!(Upstream::new(&settings).is_err());
    }
}

#[tokio::test]
async fn content_elsewhere_is_fetched_without_a_credential() {
    let authority = Authority::new();
    let (server, elsewhere) = (Server::plain().await, Server::tls(&authority).await);
    let image = Image::of(&[500_000]);
    image.push(&server, "1");
    let layer = Digest::of(&image.layers[0]).to_string();
    elsewhere.put("/content", "application/octet-stream", image.layers[0].clone());
    let away = format!("https://{}/content?signature=abc", elsewhere.host);
    server.answer(move |asked, usual| match asked.authorization {
        None => Some(Reply::new(401).with("www-authenticate", "Basic")),
        Some(_) if asked.path.ends_with(&layer) => {
            Some(Reply::new(307).with("location", away.clone()))
        }
        Some(_) => usual,
    });
    elsewhere.answer(|asked, usual| {
        usual.map(|usual| Reply { cut: asked.from.is_none().then_some(200_000), ..usual })
    });
    let mut bench = Bench::new(&[&server]);
    bench.credentials = login();
    trusting(&mut bench, &authority);
    bench.one(&server).await.unwrap();
    bench.assert_has(&image);
    let asked = elsewhere.asked();
    assert!(asked.len() == 2 && asked[1].from.is_some(), "{asked:?}");
    assert!(asked.iter().all(|asked| asked.authorization.is_none()), "{asked:?}");
    let contacts = bench.policy.contacts.lock().unwrap();
    assert!(contacts.contains(&(elsewhere.host.clone(), Purpose::Redirect)), "{contacts:?}");
}

#[tokio::test]
async fn who_is_denied_is_not_contacted_by_way_of_a_redirect() {
    let authority = Authority::new();
    let (server, elsewhere) = (Server::plain().await, Server::tls(&authority).await);
    Image::of(&[10]).push(&server, "1");
    let away = format!("https://{}/content", elsewhere.host);
    server.answer(move |asked, usual| match asked.path.contains("blobs") {
        true => Some(Reply::new(302).with("location", away.clone())),
        false => usual,
    });
    let mut bench = Bench::new(&[&server]);
    trusting(&mut bench, &authority);
    bench.policy.denied.push(elsewhere.host.clone());
    let error = bench.one(&server).await.unwrap_err();
    assert!(matches!(error, PullError::Denied { .. }), "{error}");
    assert!(elsewhere.asked().is_empty());
}

#[tokio::test]
async fn a_redirect_leads_to_tls_and_to_an_end() {
    let (server, elsewhere) = (Server::plain().await, Server::plain().await);
    Image::of(&[10]).push(&server, "1");
    let bench = Bench::new(&[&server]);
    let to = |location: String| {
        server.answer(move |_, _| Some(Reply::new(307).with("location", location.clone())));
    };
    to(format!("http://{}/content", elsewhere.host));
    let error = bench.one(&server).await.unwrap_err();
    assert!(matches!(error, PullError::Plain { .. }), "{error}");
    assert!(elsewhere.asked().is_empty());
    to("/v2/a/b/manifests/1".into());
    let error = bench.one(&server).await.unwrap_err();
    assert!(matches!(error, PullError::Redirect { .. }), "{error}");
    assert_eq!(server.asked().len(), 1 + 6);
    for location in ["file:///etc/passwd", "https://user:word@h/", "https://", "gopher://h/"] {
        to(location.into());
        let error = bench.one(&server).await.unwrap_err();
        let refused = matches!(error, PullError::Redirect { .. } | PullError::Plain { .. });
        assert!(refused, "{location}: {error}");
    }
}

#[tokio::test]
async fn a_challenge_from_elsewhere_gets_no_credential() {
    let authority = Authority::new();
    let (server, elsewhere) = (Server::plain().await, Server::tls(&authority).await);
    Image::of(&[10]).push(&server, "1");
    let away = format!("https://{}/content", elsewhere.host);
    server.answer(move |_, _| Some(Reply::new(307).with("location", away.clone())));
    elsewhere.answer(|_, _| Some(Reply::new(401).with("www-authenticate", "Basic")));
    let mut bench = Bench::new(&[&server]);
    bench.credentials = login();
    trusting(&mut bench, &authority);
    let error = bench.one(&server).await.unwrap_err();
    assert!(matches!(error, PullError::Status { status: 401, .. }), "{error}");
    assert!(elsewhere.asked().iter().all(|asked| asked.authorization.is_none()));
}

#[tokio::test]
async fn an_endpoint_stands_for_a_registry_and_the_policy_hears_both() {
    let server = Server::plain().await;
    let image = Image::of(&[10]);
    image.push(&server, "1");
    let mut bench = Bench::new(&[&server]);
    bench.settings.endpoints.insert("docker.io".into(), server.host.clone());
    bench.pull("docker.io", "a/b", "1").await.unwrap();
    bench.assert_has(&image);
    let contacts = bench.policy.contacts.lock().unwrap();
    assert!(contacts.iter().all(|(host, _)| *host == server.host), "{contacts:?}");
}

#[tokio::test]
async fn a_name_that_is_none_is_refused() {
    let bench = Bench::new(&[]);
    for (host, repository, version) in
        [("h/../x", "a", "1"), ("h", "../a", "1"), ("h", "a", "../1"), ("u:p@h", "a", "1")]
    {
        let error = bench.pull(host, repository, version).await.unwrap_err();
        assert!(matches!(error, PullError::Name(_)), "{error}");
    }
}
