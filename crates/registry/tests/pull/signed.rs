//! Images that have to be signed.

use std::process::{Command, Stdio};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use rcgen::{KeyPair, SigningKey as _};
use registry::{Digest, Platform, PublicKey, PullError, SignatureError};
use serde_json::{Value, json};

use crate::bench::{Bench, INDEX, Image, MANIFEST, descriptor};
use crate::server::Server;

/// As `cosign sign` writes it.
fn payload(digest: &Digest) -> Vec<u8> {
    let critical = json!({
        "identity": {"docker-reference": "registry.example/a/b"},
        "image": {"docker-manifest-digest": digest.to_string()},
        "type": "cosign container image signature",
    });
    json!({"critical": critical, "optional": null}).to_string().into_bytes()
}

/// Puts signatures of `image` where cosign puts them.
fn put(server: &Server, image: &Digest, signatures: &[(Vec<u8>, Vec<u8>)]) {
    let mut layers: Vec<Value> = Vec::new();
    for (payload, signature) in signatures {
        let mut layer = descriptor("application/vnd.dev.cosign.simplesigning.v1+json", payload);
        layer["annotations"] =
            json!({"dev.cosignproject.cosign/signature": BASE64.encode(signature)});
        layers.push(layer);
        let path = format!("/v2/a/b/blobs/{}", Digest::of(payload));
        server.put(&path, "application/octet-stream", payload.clone());
    }
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST,
        "config": descriptor("application/vnd.oci.image.config.v1+json", b"{}"), "layers": layers,
    });
    let path = format!("/v2/a/b/manifests/sha256-{}.sig", image.hex());
    server.put(&path, MANIFEST, manifest.to_string());
}

struct Keys {
    mine: KeyPair,
    other: KeyPair,
}

async fn set_up() -> (Server, Bench, Image, Keys) {
    let server = Server::plain().await;
    let image = Image::of(&[1000]);
    image.push(&server, "1");
    let keys = Keys { mine: KeyPair::generate().unwrap(), other: KeyPair::generate().unwrap() };
    let mut bench = Bench::new(&[&server]);
    bench.key = Some(PublicKey::from_pem(keys.mine.public_key_pem().as_bytes()).unwrap());
    (server, bench, image, keys)
}

/// That it was refused for this, before any of the image came.
fn assert_refused(error: &PullError, server: &Server, image: &Image) -> SignatureError {
    let PullError::Signature { source, .. } = error else { panic!("{error}") };
    let layer = Digest::of(&image.layers[0]).to_string();
    assert_eq!(server.count(&layer), 0, "no layer came");
    source.clone()
}

#[tokio::test]
async fn an_image_that_is_signed_by_the_key_is_taken() {
    let (server, bench, image, keys) = set_up().await;
    let good = payload(&image.digest());
    // Among others, which somebody else made.
    let others = (good.clone(), keys.other.sign(&good).unwrap());
    put(&server, &image.digest(), &[others, (good.clone(), keys.mine.sign(&good).unwrap())]);
    bench.one(&server).await.unwrap();
    bench.assert_has(&image);
}

#[tokio::test]
async fn an_image_without_a_good_signature_is_not_taken() {
    let (server, bench, image, keys) = set_up().await;
    let error = bench.one(&server).await.unwrap_err();
    let why = assert_refused(&error, &server, &image);
    assert!(matches!(why, SignatureError::None(_)), "{why}");
    let good = payload(&image.digest());
    let about_another = payload(&Digest::of(b"another"));
    for wrong in [
        (good.clone(), keys.other.sign(&good).unwrap()),
        (about_another.clone(), keys.mine.sign(&about_another).unwrap()),
        (good.clone(), Vec::new()),
    ] {
        put(&server, &image.digest(), &[wrong]);
        let error = bench.one(&server).await.unwrap_err();
        let why = assert_refused(&error, &server, &image);
        assert_eq!(why, SignatureError::Unsigned(1));
    }
    let path = format!("/v2/a/b/manifests/sha256-{}.sig", image.digest().hex());
    let list = r#"{"schemaVersion":2,"manifests":[]}"#;
    server.put(&path, INDEX, list);
    let why = assert_refused(&bench.one(&server).await.unwrap_err(), &server, &image);
    assert!(matches!(why, SignatureError::Form(_)), "{why}");
}

#[tokio::test]
async fn what_is_here_already_is_not_taken_without_its_signature() {
    let (server, mut bench, image, _) = set_up().await;
    let key = bench.key.take();
    bench.one(&server).await.unwrap();
    bench.key = key;
    let error = bench.pull(&server.host, "a/b", &image.digest().to_string()).await.unwrap_err();
    assert!(matches!(error, PullError::Signature { .. }), "{error}");
}

#[tokio::test]
async fn a_signature_of_a_list_or_of_the_image_in_it_counts() {
    let (server, bench, image, keys) = set_up().await;
    let platform = Platform::host();
    let mut entry = descriptor(MANIFEST, &image.manifest);
    entry["platform"] = json!({"os": platform.os, "architecture": platform.architecture});
    let list = json!({"schemaVersion": 2, "manifests": [entry]}).to_string();
    server.put("/v2/a/b/manifests/list", INDEX, list.clone());
    let error = bench.pull(&server.host, "a/b", "list").await.unwrap_err();
    assert_refused(&error, &server, &image);
    for signed in [Digest::of(list.as_bytes()), image.digest()] {
        let (server, mut bench, ..) = set_up().await;
        bench.key = Some(PublicKey::from_pem(keys.mine.public_key_pem().as_bytes()).unwrap());
        server.put("/v2/a/b/manifests/list", INDEX, list.clone());
        let payload = payload(&signed);
        put(&server, &signed, &[(payload.clone(), keys.mine.sign(&payload).unwrap())]);
        bench.pull(&server.host, "a/b", "list").await.unwrap();
    }
}

#[tokio::test]
async fn a_signature_that_openssl_makes_counts() {
    let (server, mut bench, image, _) = set_up().await;
    let path = |name: &str| bench.directory.path().join(name);
    let (private, public, message, proof) =
        (path("key"), path("pub"), path("message"), path("sig"));
    let openssl = |arguments: &[&std::ffi::OsStr]| {
        let status = Command::new("openssl").args(arguments).stderr(Stdio::null()).status();
        status.map(|status| assert!(status.success()))
    };
    let made = openssl(&[
        "ecparam".as_ref(),
        "-name".as_ref(),
        "prime256v1".as_ref(),
        "-genkey".as_ref(),
        "-noout".as_ref(),
        "-out".as_ref(),
        private.as_ref(),
    ]);
    if made.is_err() {
        println!("not run: openssl is not installed");
        return;
    }
    openssl(&[
        "ec".as_ref(),
        "-in".as_ref(),
        private.as_ref(),
        "-pubout".as_ref(),
        "-out".as_ref(),
        public.as_ref(),
    ])
    .unwrap();
    let signed = payload(&image.digest());
    std::fs::write(&message, &signed).unwrap();
    openssl(&[
        "dgst".as_ref(),
        "-sha256".as_ref(),
        "-sign".as_ref(),
        private.as_ref(),
        "-out".as_ref(),
        proof.as_ref(),
        message.as_ref(),
    ])
    .unwrap();
    put(&server, &image.digest(), &[(signed, std::fs::read(&proof).unwrap())]);
    let key = std::fs::read(&public).unwrap();
    bench.key = Some(PublicKey::from_pem(&key).unwrap());
    bench.one(&server).await.unwrap();
}
