//! hudsucker, which puts nothing in, takes nothing out, asks no rules and writes nothing down.

use std::path::Path;

use hudsucker::Proxy;
use hudsucker::certificate_authority::RcgenAuthority;
use hyper_rustls::HttpsConnectorBuilder;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpListener;

use crate::{Outcome, provider};

/// A proxy at the port that is given.
pub(crate) async fn serve(directory: &Path) -> Outcome<u16> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(rcgen::DnType::CommonName, "hudsucker");
    let key = KeyPair::generate()?;
    let pem = params.self_signed(&key)?.pem();
    let authority = RcgenAuthority::new(
        Issuer::new(params, key),
        1_000,
        rustls::crypto::aws_lc_rs::default_provider(),
    );

    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(directory.join("origin.pem"))? {
        roots.add(certificate?)?;
    }
    let config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connector = HttpsConnectorBuilder::new()
        .with_tls_config(config)
        .https_only()
        .enable_http1()
        .enable_http2()
        .build();
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let port = listener.local_addr()?.port();
    let proxy = Proxy::builder()
        .with_listener(listener)
        .with_ca(authority)
        .with_http_connector(connector)
        .build()?;
    tokio::spawn(async move {
        if let Err(error) = proxy.start().await {
            eprintln!("hudsucker: {error}");
        }
    });
    std::fs::write(directory.join("hudsucker.pem"), pem)?;
    Ok(port)
}
