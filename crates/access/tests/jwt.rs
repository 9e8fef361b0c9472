//! Each way in which a token of an identity provider is refused, and how its keys are got.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use access::Caller;
use access::jwt::{Config, ConfigError, JwtError, KeysError, MAX_LENGTH, Verifier};
use api::{CallerKind, Role, Timestamp};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

const NOW_SEC: u64 = 1_700_000_000;

fn now() -> Timestamp {
    Timestamp::from_unix_ms(i64::try_from(NOW_SEC).unwrap() * 1000)
}

/// An identity provider with a key of its own.
struct Provider {
    key: rcgen::KeyPair,
    kid: &'static str,
}

impl Provider {
    fn new(kid: &'static str) -> Self {
        Self { key: rcgen::KeyPair::generate().unwrap(), kid }
    }

    fn jwk(&self) -> Value {
        // An uncompressed point: a byte, and twice 32.
        let point = self.key.public_key_raw();
        let (x, y) = point[1..].split_at(32);
        json!({
            "kty": "EC", "crv": "P-256", "kid": self.kid, "use": "sig", "alg": "ES256",
            "x": URL_SAFE_NO_PAD.encode(x), "y": URL_SAFE_NO_PAD.encode(y),
        })
    }

    fn sign(&self, claims: &Value) -> String {
        self.sign_as(Some(self.kid), claims)
    }

    fn sign_as(&self, kid: Option<&str>, claims: &Value) -> String {
        let mut header = Header::new(Algorithm::ES256);
        header.kid = kid.map(Into::into);
        let key = EncodingKey::from_ec_der(&self.key.serialize_der());
        jsonwebtoken::encode(&header, claims, &key).unwrap()
    }
}

fn claims() -> Value {
    json!({
        "iss": "https://id.example", "aud": "sandforge", "sub": "alice", "exp": NOW_SEC + 60,
        "nbf": NOW_SEC - 60, "workspace": "red", "role": "member",
    })
}

fn with(name: &str, value: Value) -> Value {
    let mut claims = claims();
    claims[name] = value;
    claims
}

fn without(name: &str) -> Value {
    let mut claims = claims();
    claims.as_object_mut().unwrap().remove(name);
    claims
}

fn config() -> Config {
    serde_json::from_value(json!({"issuer": "https://id.example", "audience": "sandforge"}))
        .unwrap()
}

fn key_file(keys: &[Value]) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    std::io::Write::write_all(&mut file, json!({ "keys": keys }).to_string().as_bytes()).unwrap();
    file
}

/// The verifier, and the file that it reads again when it does not know a key.
fn verifier_of(provider: &Provider) -> (Verifier, tempfile::NamedTempFile) {
    let file = key_file(&[provider.jwk()]);
    let config = Config { jwks_file: Some(file.path().into()), ..config() };
    (Verifier::new(config).unwrap(), file)
}

async fn admit(claims: &Value) -> Result<Caller, JwtError> {
    let provider = Provider::new("k1");
    let (verifier, _file) = verifier_of(&provider);
    verifier.admit(&provider.sign(claims), now()).await
}

async fn refused(claims: &Value) -> JwtError {
    admit(claims).await.unwrap_err()
}

/// A token put together by hand.
fn raw(header: &Value, claims: &Value, signature: &[u8]) -> String {
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    format!("{}.{}.{}", part(header), part(claims), URL_SAFE_NO_PAD.encode(signature))
}

#[tokio::test]
async fn a_good_token_is_a_caller_of_its_workspace() {
    let caller = admit(&claims()).await.unwrap();
    assert_eq!(caller.subject, "alice");
    assert_eq!(caller.kind, CallerKind::Jwt);
    assert_eq!(caller.role, Role::Member);
    assert_eq!(caller.workspace.as_deref(), Some("red"));
}

#[tokio::test]
async fn claims_of_other_names_can_be_configured() {
    let provider = Provider::new("k1");
    let file = key_file(&[provider.jwk()]);
    let config = Config {
        jwks_file: Some(file.path().into()),
        workspace_claim: "https://example.org/team".into(),
        role_claim: "level".into(),
        ..config()
    };
    let mut claims = claims();
    claims["https://example.org/team"] = json!("blue");
    claims["level"] = json!("owner");
    let caller =
        Verifier::new(config).unwrap().admit(&provider.sign(&claims), now()).await.unwrap();
    assert_eq!((caller.workspace.as_deref(), caller.role), (Some("blue"), Role::Owner));
}

#[tokio::test]
async fn alg_none_is_refused() {
    let (verifier, _file) = verifier_of(&Provider::new("k1"));
    for name in ["none", "None", "NONE", ""] {
        for signature in [b"".as_slice(), b"x"] {
            let token = raw(&json!({"alg": name, "kid": "k1"}), &claims(), signature);
            let error = verifier.admit(&token, now()).await.unwrap_err();
            assert!(matches!(error, JwtError::Algorithm), "{name}: {error}");
        }
    }
}

#[tokio::test]
async fn hs256_with_the_public_key_as_the_secret_is_refused() {
    let provider = Provider::new("k1");
    let (verifier, _file) = verifier_of(&provider);
    let mut header = Header::new(Algorithm::HS256);
    header.kid = Some("k1".into());
    let jwk = provider.jwk();
    for secret in [
        provider.key.public_key_raw().to_vec(),
        provider.key.public_key_raw()[1..].to_vec(),
        jwk.to_string().into_bytes(),
        jwk["x"].as_str().unwrap().as_bytes().to_vec(),
        Vec::new(),
    ] {
        let token =
            jsonwebtoken::encode(&header, &claims(), &EncodingKey::from_secret(&secret)).unwrap();
        let error = verifier.admit(&token, now()).await.unwrap_err();
        assert!(matches!(error, JwtError::Algorithm), "{error}");
    }
}

#[tokio::test]
async fn an_algorithm_that_is_not_configured_is_refused() {
    let provider = Provider::new("k1");
    let file = key_file(&[provider.jwk()]);
    let config = Config {
        jwks_file: Some(file.path().into()),
        algorithms: vec!["RS256".into(), "EdDSA".into()],
        ..config()
    };
    let error =
        Verifier::new(config).unwrap().admit(&provider.sign(&claims()), now()).await.unwrap_err();
    assert!(matches!(error, JwtError::Algorithm), "{error}");
}

#[tokio::test]
async fn an_algorithm_of_another_kind_of_key_is_refused() {
    let (verifier, _file) = verifier_of(&Provider::new("k1"));
    for name in ["RS256", "EdDSA"] {
        let token = raw(&json!({"alg": name, "kid": "k1"}), &claims(), &[0; 64]);
        let error = verifier.admit(&token, now()).await.unwrap_err();
        assert!(matches!(error, JwtError::UnknownKey), "{name}: {error}");
    }
}

#[tokio::test]
async fn a_wrong_or_missing_kid_is_refused() {
    let provider = Provider::new("k1");
    let (verifier, _file) = verifier_of(&provider);
    let error = verifier.admit(&provider.sign_as(Some("k2"), &claims()), now()).await.unwrap_err();
    assert!(matches!(error, JwtError::UnknownKey), "{error}");
    let error = verifier.admit(&provider.sign_as(None, &claims()), now()).await.unwrap_err();
    assert!(matches!(error, JwtError::NoKey), "{error}");
}

#[tokio::test]
async fn another_providers_signature_is_refused() {
    let (verifier, _file) = verifier_of(&Provider::new("k1"));
    let error = verifier.admit(&Provider::new("k1").sign(&claims()), now()).await.unwrap_err();
    assert!(matches!(error, JwtError::Signature), "{error}");
}

#[tokio::test]
async fn a_key_that_the_token_brings_along_is_not_used() {
    let (verifier, _file) = verifier_of(&Provider::new("k1"));
    let attacker = Provider::new("k1");
    let mut header = Header::new(Algorithm::ES256);
    header.kid = Some("k1".into());
    header.jwk = Some(serde_json::from_value(attacker.jwk()).unwrap());
    header.jku = Some("https://attacker.example/keys".into());
    let key = EncodingKey::from_ec_der(&attacker.key.serialize_der());
    let token = jsonwebtoken::encode(&header, &claims(), &key).unwrap();
    let error = verifier.admit(&token, now()).await.unwrap_err();
    assert!(matches!(error, JwtError::Signature), "{error}");
}

#[tokio::test]
async fn a_changed_character_anywhere_is_refused() {
    let provider = Provider::new("k1");
    let (verifier, _file) = verifier_of(&provider);
    let token = provider.sign(&claims());
    for at in 0..token.len() {
        let mut changed = token.clone().into_bytes();
        changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
        let changed = String::from_utf8(changed).unwrap();
        assert!(verifier.admit(&changed, now()).await.is_err(), "character {at}");
    }
}

#[tokio::test]
async fn an_expired_token_is_refused() {
    let error = refused(&with("exp", json!(NOW_SEC - 31))).await;
    assert!(matches!(error, JwtError::Expired), "{error}");
    assert!(admit(&with("exp", json!(NOW_SEC - 29))).await.is_ok(), "clocks differ a little");
}

#[tokio::test]
async fn a_token_that_never_expires_is_refused() {
    for claims in [
        without("exp"),
        with("exp", json!("never")),
        with("exp", json!(-1)),
        with("exp", json!(1e300)),
    ] {
        let error = refused(&claims).await;
        assert!(matches!(&error, JwtError::Claim(name) if name == "exp"), "{error}");
    }
}

#[tokio::test]
async fn a_token_of_the_future_is_refused() {
    let error = refused(&with("nbf", json!(NOW_SEC + 31))).await;
    assert!(matches!(error, JwtError::NotYetValid), "{error}");
    assert!(admit(&with("nbf", json!(NOW_SEC + 29))).await.is_ok(), "clocks differ a little");
    assert!(admit(&without("nbf")).await.is_ok());
    let error = refused(&with("nbf", json!("later"))).await;
    assert!(matches!(&error, JwtError::Claim(name) if name == "nbf"), "{error}");
}

#[tokio::test]
async fn another_issuers_token_is_refused() {
    for issuer in ["https://id.example/", "https://other.example", ""] {
        let error = refused(&with("iss", json!(issuer))).await;
        assert!(matches!(error, JwtError::Issuer), "{error}");
    }
    for claims in [without("iss"), with("iss", json!(["https://id.example"]))] {
        let error = refused(&claims).await;
        assert!(matches!(&error, JwtError::Claim(name) if name == "iss"), "{error}");
    }
}

#[tokio::test]
async fn a_token_for_another_audience_is_refused() {
    for audience in [json!("other"), json!(["other"]), json!([]), json!([["sandforge"]])] {
        let error = refused(&with("aud", audience)).await;
        assert!(matches!(error, JwtError::Audience), "{error}");
    }
    assert!(admit(&with("aud", json!(["other", "sandforge"]))).await.is_ok());
    let error = refused(&without("aud")).await;
    assert!(matches!(&error, JwtError::Claim(name) if name == "aud"), "{error}");
}

#[tokio::test]
async fn a_token_without_a_workspace_is_refused() {
    for claims in [
        without("workspace"),
        with("workspace", json!("")),
        with("workspace", json!(null)),
        with("workspace", json!(["red"])),
        with("workspace", json!("../blue")),
    ] {
        let error = refused(&claims).await;
        assert!(matches!(&error, JwtError::Claim(name) if name == "workspace"), "{error}");
    }
}

#[tokio::test]
async fn a_token_with_an_unknown_role_is_refused() {
    for claims in [
        without("role"),
        with("role", json!("root")),
        with("role", json!("Owner")),
        with("role", json!(["owner"])),
    ] {
        let error = refused(&claims).await;
        assert!(matches!(&error, JwtError::Claim(name) if name == "role"), "{error}");
    }
}

#[tokio::test]
async fn a_token_without_a_plain_subject_is_refused() {
    for claims in [without("sub"), with("sub", json!("")), with("sub", json!("a\nb"))] {
        let error = refused(&claims).await;
        assert!(matches!(&error, JwtError::Claim(name) if name == "sub"), "{error}");
    }
}

#[tokio::test]
async fn an_oversized_token_is_refused_unread() {
    let error = refused(&with("more", json!("x".repeat(MAX_LENGTH)))).await;
    assert!(matches!(error, JwtError::TooLong), "{error}");
}

#[tokio::test]
async fn an_extension_that_must_be_understood_is_refused() {
    let provider = Provider::new("k1");
    let (verifier, _file) = verifier_of(&provider);
    let token = raw(&json!({"alg": "ES256", "kid": "k1", "crit": ["x"], "x": 1}), &claims(), b"x");
    let error = verifier.admit(&token, now()).await.unwrap_err();
    assert!(matches!(error, JwtError::Malformed), "{error}");
}

#[tokio::test]
async fn what_is_not_a_jwt_is_refused() {
    let (verifier, _file) = verifier_of(&Provider::new("k1"));
    for token in ["", ".", "..", "a.b.c", "e30.e30.", "W10.e30.x", "🦀.e30.x"] {
        let error = verifier.admit(token, now()).await.unwrap_err();
        assert!(matches!(error, JwtError::Malformed), "{token}: {error}");
    }
}

#[tokio::test]
async fn claims_that_are_no_object_are_refused() {
    let provider = Provider::new("k1");
    let (verifier, _file) = verifier_of(&provider);
    for claims in [json!([]), json!("x"), json!(null)] {
        assert!(verifier.admit(&provider.sign(&claims), now()).await.is_err(), "{claims}");
    }
}

#[tokio::test]
async fn a_file_is_read_again_for_a_key_that_was_added() {
    let (first, second) = (Provider::new("k1"), Provider::new("k2"));
    let file = key_file(&[first.jwk()]);
    let config = Config { jwks_file: Some(file.path().into()), min_refresh_sec: 0, ..config() };
    let verifier = Verifier::new(config).unwrap();
    assert!(verifier.admit(&second.sign(&claims()), now()).await.is_err());
    std::fs::write(file.path(), json!({"keys": [first.jwk(), second.jwk()]}).to_string()).unwrap();
    assert!(verifier.admit(&second.sign(&claims()), now()).await.is_ok());
}

#[test]
fn a_file_that_is_not_there_is_told_at_the_start() {
    let config = Config { jwks_file: Some("/nowhere/keys.json".into()), ..config() };
    let error = Verifier::new(config).unwrap_err();
    assert!(matches!(error, ConfigError::Keys(KeysError::File { .. })), "{error}");
}

/// Serves an answer that can be changed, and counts how often it was asked.
struct KeyServer {
    url: String,
    asked: Arc<AtomicUsize>,
    answer: Arc<std::sync::Mutex<String>>,
}

fn ok(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len())
}

impl KeyServer {
    async fn start(answer: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/keys", listener.local_addr().unwrap());
        let asked = Arc::new(AtomicUsize::new(0));
        let answer = Arc::new(std::sync::Mutex::new(answer));
        let (count, text) = (asked.clone(), answer.clone());
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n") {
                    match stream.read_u8().await {
                        Ok(byte) => request.push(byte),
                        Err(_) => break,
                    }
                }
                count.fetch_add(1, Ordering::SeqCst);
                let answer = text.lock().unwrap().clone();
                // A client that has read enough goes away.
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        Self { url, asked, answer }
    }

    async fn with_keys(keys: &[Value]) -> Self {
        Self::start(ok(&json!({ "keys": keys }).to_string())).await
    }

    fn verifier(&self, min_refresh_sec: u64) -> Verifier {
        Verifier::new(Config {
            jwks_url: Some(self.url.clone()),
            allow_loopback_http: true,
            min_refresh_sec,
            ..config()
        })
        .unwrap()
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    fn answer_with(&self, answer: String) {
        *self.answer.lock().unwrap() = answer;
    }
}

#[tokio::test]
async fn keys_are_got_once_for_many_tokens() {
    let provider = Provider::new("k1");
    let server = KeyServer::with_keys(&[provider.jwk()]).await;
    let verifier = server.verifier(0);
    let token = provider.sign(&claims());
    for _ in 0..5 {
        assert!(verifier.admit(&token, now()).await.is_ok());
    }
    assert_eq!(server.asked(), 1);
}

#[tokio::test]
async fn many_first_tokens_at_once_ask_once() {
    let provider = Provider::new("k1");
    let server = KeyServer::with_keys(&[provider.jwk()]).await;
    let verifier = Arc::new(server.verifier(30));
    let token = provider.sign(&claims());
    let callers: Vec<_> = (0..8)
        .map(|_| {
            let (verifier, token) = (verifier.clone(), token.clone());
            tokio::spawn(async move { verifier.admit(&token, now()).await.is_ok() })
        })
        .collect();
    for caller in callers {
        assert!(caller.await.unwrap());
    }
    assert_eq!(server.asked(), 1);
}

#[tokio::test]
async fn a_new_key_of_the_provider_is_found() {
    let (first, second) = (Provider::new("k1"), Provider::new("k2"));
    let server = KeyServer::with_keys(&[first.jwk()]).await;
    let verifier = server.verifier(0);
    assert!(verifier.admit(&first.sign(&claims()), now()).await.is_ok());
    server.answer_with(ok(&json!({"keys": [second.jwk()]}).to_string()));
    assert!(verifier.admit(&second.sign(&claims()), now()).await.is_ok());
    let error = verifier.admit(&first.sign(&claims()), now()).await.unwrap_err();
    assert!(matches!(error, JwtError::UnknownKey), "a key that went is not kept: {error}");
}

#[tokio::test]
async fn invented_keys_do_not_make_it_ask_again_and_again() {
    let provider = Provider::new("k1");
    let server = KeyServer::with_keys(&[provider.jwk()]).await;
    let verifier = server.verifier(30);
    for kid in ["a", "b", "c", "d"] {
        let token = provider.sign_as(Some(kid), &claims());
        assert!(verifier.admit(&token, now()).await.is_err());
    }
    assert_eq!(server.asked(), 1);
    assert!(verifier.admit(&provider.sign(&claims()), now()).await.is_ok());
}

#[tokio::test]
async fn keys_that_are_known_outlast_a_provider_that_fails() {
    let (first, second) = (Provider::new("k1"), Provider::new("k2"));
    let server = KeyServer::with_keys(&[first.jwk()]).await;
    let verifier = server.verifier(0);
    assert!(verifier.admit(&first.sign(&claims()), now()).await.is_ok());
    server.answer_with("HTTP/1.1 500 Oops\r\ncontent-length: 0\r\n\r\n".into());
    let error = verifier.admit(&second.sign(&claims()), now()).await.unwrap_err();
    assert!(matches!(error, JwtError::Keys(KeysError::Status(500))), "{error}");
    assert!(verifier.admit(&first.sign(&claims()), now()).await.is_ok());
}

#[tokio::test]
async fn without_keys_no_token_is_taken() {
    let provider = Provider::new("k1");
    let token = provider.sign(&claims());
    for (answer, what) in [
        ("HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n".to_owned(), "status"),
        (ok("<html>"), "json"),
        (ok("{\"keys\":[]}"), "no key"),
        (ok(&format!("{{\"keys\":[],\"x\":\"{}\"}}", "x".repeat(300 << 10))), "size"),
        ("not HTTP\r\n\r\n".to_owned(), "protocol"),
    ] {
        let server = KeyServer::start(answer).await;
        let error = server.verifier(0).admit(&token, now()).await.unwrap_err();
        let expected = match what {
            "status" => matches!(error, JwtError::Keys(KeysError::Status(404))),
            "json" => matches!(error, JwtError::Keys(KeysError::Json(_))),
            "no key" => matches!(error, JwtError::Keys(KeysError::NoKey)),
            "size" => matches!(error, JwtError::Keys(KeysError::TooLarge)),
            _ => matches!(error, JwtError::Keys(KeysError::Get(_))),
        };
        assert!(expected, "{what}: {error:?}");
    }
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let provider = Provider::new("k1");
    let other = KeyServer::with_keys(&[provider.jwk()]).await;
    let redirect =
        format!("HTTP/1.1 302 Found\r\nlocation: {}\r\ncontent-length: 0\r\n\r\n", other.url);
    let server = KeyServer::start(redirect).await;
    let error = server.verifier(0).admit(&provider.sign(&claims()), now()).await.unwrap_err();
    assert!(matches!(error, JwtError::Keys(KeysError::Status(302))), "{error}");
    assert_eq!(other.asked(), 0);
}
