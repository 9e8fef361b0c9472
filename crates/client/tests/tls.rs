//! Whom the client believes, over a network.

mod support;

use std::sync::Arc;

use client::{Client, Retries};
use rustls_pki_types::PrivateKeyDer;
use serde_json::json;
use support::json;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

/// A server with a certificate of its own for `localhost`: its port, and the certificate in PEM.
async fn server() -> (u16, String) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let pem = made.cert.pem();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            if let Ok(stream) = acceptor.accept(stream).await {
                tokio::spawn(support::serve(stream, |_| async {
                    json(200, &json!({"status": "ok"}))
                }));
            }
        }
    });
    (port, pem)
}

#[tokio::test]
async fn the_certificate_that_was_given_is_believed() {
    let (port, pem) = server().await;
    let client = Client::builder().url(format!("https://localhost:{port}")).authorities(pem);
    assert_eq!(client.build().unwrap().health().await.unwrap().status, "ok");
}

#[tokio::test]
async fn any_other_certificate_is_not() {
    let (port, _) = server().await;
    let (_, other) = server().await;
    let client = Client::builder()
        .url(format!("https://localhost:{port}"))
        .authorities(other)
        .retries(Retries::NONE);
    let error = client.build().unwrap().health().await.unwrap_err();
    assert!(error.is_connect(), "{error:?}");
}

#[tokio::test]
async fn a_certificate_for_another_name_is_not() {
    let (port, pem) = server().await;
    let client = Client::builder()
        .url(format!("https://127.0.0.1:{port}"))
        .authorities(pem)
        .retries(Retries::NONE);
    let error = client.build().unwrap().health().await.unwrap_err();
    assert!(error.is_connect(), "{error:?}");
}
