//! Callers that an identity provider vouches for.

use access::jwt::Config;
use api::Timestamp;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use crate::server::Server;

struct Provider(rcgen::KeyPair);

impl Provider {
    fn new() -> Self {
        Self(rcgen::KeyPair::generate().unwrap())
    }

    fn jwks(&self) -> String {
        // An uncompressed point: a byte, and twice 32.
        let (x, y) = self.0.public_key_raw()[1..].split_at(32);
        let coordinate = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let key = json!({"kty": "EC", "crv": "P-256", "kid": "k1", "use": "sig", "alg": "ES256",
            "x": coordinate(x), "y": coordinate(y)});
        json!({ "keys": [key] }).to_string()
    }

    /// A token that is good for a minute, but for what `change` says.
    fn token(&self, change: &Value) -> String {
        let now = Timestamp::now().unix_ms() / 1000;
        let mut claims = json!({"iss": "https://id.example", "aud": "sandforge", "sub": "alice",
            "exp": now + 60, "workspace": "red", "role": "member"});
        for (name, value) in change.as_object().unwrap() {
            claims[name] = match value.as_i64() {
                Some(seconds) => (now + seconds).into(),
                None => value.clone(),
            };
        }
        let header = Header { kid: Some("k1".into()), ..Header::new(Algorithm::ES256) };
        let key = EncodingKey::from_ec_der(&self.0.serialize_der());
        jsonwebtoken::encode(&header, &claims, &key).unwrap()
    }
}

fn config(more: &Value) -> Config {
    let mut config = json!({"issuer": "https://id.example", "audience": "sandforge"});
    config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    serde_json::from_value(config).unwrap()
}

/// A server that takes the provider's tokens, and its policy.
async fn serve(config: Config) -> (Server, tempfile::NamedTempFile) {
    let policy = tempfile::NamedTempFile::new().unwrap();
    // The mock engine isolates nothing.
    std::fs::write(policy.path(), "[isolation]\nminimum = \"process\"\n").unwrap();
    let change = |fleet: &mut fleet::Config| {
        fleet.policy = Some(policy.path().into());
        fleet.identity_provider = Some(config);
    };
    (Server::of(|_| {}, change).await, policy)
}

/// What a server does for the provider's callers, and not for others.
async fn is_known(server: &Server, provider: &Provider) {
    let who = server.get("/v1/whoami").token(&provider.token(&json!({}))).send().await;
    assert_eq!(who.status, 200, "{who:?}");
    let who = who.json();
    assert_eq!((&who["subject"], &who["kind"]), (&json!("alice"), &json!("jwt")));
    assert_eq!((&who["workspace"], &who["role"]), (&json!("red"), &json!("member")));
    let create = server.post("/v1/sandboxes").token(&provider.token(&json!({})));
    let made = create.json(&json!({"engine": "mock"})).send().await;
    assert_eq!((made.status, &made.json()["workspace"]), (201, &json!("red")), "{made:?}");
    let viewer = provider.token(&json!({"role": "viewer"}));
    let create = server.post("/v1/sandboxes").token(&viewer).json(&json!({"engine": "mock"}));
    create.send().await.assert_problem(403, "forbidden");
    let target = format!("/v1/sandboxes/{}", made.json()["id"].as_str().unwrap());
    assert_eq!(server.get(&target).token(&viewer).send().await.status, 200);
    let elsewhere = provider.token(&json!({"workspace": "blue"}));
    server.get(&target).token(&elsewhere).send().await.assert_problem(404, "not_found");
    for wrong in [
        json!({"exp": -120}),
        json!({"aud": "another"}),
        json!({"iss": "https://other.example"}),
        json!({"role": "root"}),
    ] {
        let reply = server.get("/v1/whoami").token(&provider.token(&wrong)).send().await;
        assert_eq!(reply.problem(), (401, "unauthenticated".into()), "{wrong}");
    }
    let stranger = Provider::new().token(&json!({}));
    server.get("/v1/whoami").token(&stranger).send().await.assert_problem(401, "unauthenticated");
}

#[tokio::test]
async fn callers_of_a_provider_are_known_by_the_keys_in_a_file() {
    let provider = Provider::new();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), provider.jwks()).unwrap();
    let config = config(&json!({"jwks_file": file.path()}));
    let (server, _policy) = serve(config).await;
    is_known(&server, &provider).await;
}

#[tokio::test]
async fn callers_of_a_provider_are_known_by_the_keys_at_a_url() {
    let provider = Provider::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/jwks.json", listener.local_addr().unwrap());
    let jwks = provider.jwks();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut asked = Vec::new();
            while !asked.ends_with(b"\r\n\r\n") {
                if stream.read_buf(&mut asked).await.unwrap_or(0) == 0 {
                    break;
                }
            }
            let answer = format!(
                "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\
                 connection: close\r\n\r\n{jwks}",
                jwks.len()
            );
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    let config = Config { allow_loopback_http: true, ..config(&json!({"jwks_url": url})) };
    let (server, _policy) = serve(config).await;
    is_known(&server, &provider).await;
}
