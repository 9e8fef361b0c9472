//! A pull, from the name to the last layer.

use std::path::{Path, PathBuf};

use futures_util::future::BoxFuture;
use futures_util::{StreamExt as _, TryStreamExt as _};
use oci_client::manifest::OCI_IMAGE_MEDIA_TYPE;
use reqwest::header::CONTENT_TYPE;
use serde_json::{Value, json};

use crate::blob;
use crate::credentials::Credentials;
use crate::digest::Digest;
use crate::error::PullError;
use crate::layout::Layout;
use crate::manifest::{self, ACCEPT, Blob, Config, Document, Entry, Image};
use crate::name::{Source, Version};
use crate::platform::Platform;
use crate::policy::Allow;
use crate::progress::Progress;
use crate::session::{Fault, Patience, Session};
use crate::signature::{self, PublicKey, SignatureError};
use crate::upstream::Upstream;

/// What a pull may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The bytes of all blobs, as they come: compressed.
    pub bytes: u64,
    /// Blobs at once.
    pub parallel: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { bytes: 32 << 30, parallel: 4 }
    }
}

/// What is pulled, where to, and who is asked.
#[derive(Clone, Copy)]
pub struct Pull<'a> {
    /// Which image.
    pub source: &'a Source,
    /// Which of it.
    pub version: &'a Version,
    /// For which platform; the host's where none is said.
    pub platform: Option<&'a Platform>,
    /// The image layout to fill; made where it is not there.
    pub layout: &'a Path,
    /// Whether the image gets its name in the layout's index. Not where somebody else keeps that.
    pub names: bool,
    /// Who we are.
    pub credentials: &'a Credentials,
    /// Asked before each contact.
    pub policy: &'a dyn Allow,
    /// The key that has to have signed it.
    pub signature: Option<&'a PublicKey>,
    /// The way there.
    pub upstream: &'a Upstream,
    /// What it may take.
    pub limits: Limits,
    /// Who is told how far it is.
    pub progress: &'a dyn Progress,
}

impl std::fmt::Debug for Pull<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pull({} {})", self.source, self.version)
    }
}

/// What was pulled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pulled {
    /// The image's own manifest.
    pub manifest_digest: Digest,
    /// The list that it was selected from.
    pub index_digest: Option<Digest>,
    /// Its configuration.
    pub config_digest: Digest,
    /// Its layers, the lowest first.
    pub layers: Vec<Blob>,
    /// What it runs on.
    pub platform: Platform,
}

/// A manifest or list as it came.
struct Fetched {
    digest: Digest,
    bytes: Vec<u8>,
    document: Document,
}

/// Pulls an image. When it returns, the layout has the manifest, the configuration and all layers under
/// their digests, each verified; after an error or a kill what has come stays as partial blobs, and the
/// next pull goes on there.
///
/// # Errors
/// `PullError`.
pub async fn pull(request: Pull<'_>) -> Result<Pulled, PullError> {
    let Pull { source, upstream, policy, credentials, progress, .. } = request;
    let session = Session::new(source, upstream, policy, credentials, progress)?;
    let layout = open(request.layout.to_path_buf()).await?;
    let host = Platform::host();
    let wanted = request.platform.unwrap_or(&host);
    let named = fetch(&session, &layout, &request.version.to_string(), None).await?;
    let mut platform = None;
    let (list, chosen) = match &named.document {
        Document::Image(_) => (None, named),
        Document::Index(entries) => {
            let entry = manifest::select(entries, wanted).ok_or_else(|| PullError::Platform {
                wanted: wanted.clone(),
                there: platforms(entries),
            })?;
            platform.clone_from(&entry.platform);
            let blob = &entry.blob;
            let chosen = fetch(&session, &layout, &blob.digest.to_string(), Some(blob)).await?;
            (Some(named), chosen)
        }
    };
    let Document::Image(image) = &chosen.document else {
        let why = manifest::ManifestError::Kind("list in a list".into());
        return Err(of_manifest(&session, &chosen.digest.to_string())(why));
    };
    let unusable = || of_manifest(&session, &chosen.digest.to_string());
    image.check().map_err(unusable())?;
    let bytes = image.total().map_err(unusable())?;
    if bytes > request.limits.bytes {
        return Err(PullError::Large { bytes, most: request.limits.bytes });
    }
    if image.config.size > manifest::LONGEST as u64 {
        let bytes = image.config.size;
        return Err(PullError::Large { bytes, most: manifest::LONGEST as u64 });
    }
    if let Some(key) = request.signature {
        let signed = [list.as_ref().map(|list| list.digest), Some(chosen.digest)];
        verify(&session, &layout, key, signed.into_iter().flatten()).await?;
    }
    progress.total(bytes);
    blob::fetch(&session, &layout, &image.config).await?;
    let config = configuration(&layout, image).map_err(unusable())?;
    let found = config.platform.or(platform).unwrap_or_else(|| wanted.clone());
    if wanted.suits(&found).is_none() {
        let there = format!("one for {found} alone");
        return Err(PullError::Platform { wanted: wanted.clone(), there });
    }
    let mut blobs: Vec<&Blob> = Vec::new();
    for layer in &image.layers {
        if !blobs.iter().any(|blob| blob.digest == layer.digest) {
            blobs.push(layer);
        }
    }
    // Boxed: the compiler cannot see of closures over references that their futures are Send.
    let mut fetches: Vec<BoxFuture<'_, Result<(), PullError>>> = Vec::with_capacity(blobs.len());
    for layer in blobs {
        fetches.push(Box::pin(blob::fetch(&session, &layout, layer)));
    }
    futures_util::stream::iter(fetches)
        .buffer_unordered(request.limits.parallel.clamp(1, 16))
        .try_collect::<()>()
        .await?;
    let pulled = Pulled {
        manifest_digest: chosen.digest,
        index_digest: list.as_ref().map(|list| list.digest),
        config_digest: image.config.digest,
        layers: image.layers.clone(),
        platform: found,
    };
    let entry = request.names.then(|| entry(&request, &chosen, &pulled.platform));
    let keep = move || {
        // Last: what has a manifest is all there.
        for document in [Some(&chosen), list.as_ref()].into_iter().flatten() {
            layout.keep(&document.digest, &document.bytes)?;
        }
        entry.map_or(Ok(()), |(name, descriptor)| layout.name(&name, descriptor))
    };
    tokio::task::spawn_blocking(keep).await.map_err(|_| PullError::Interrupted)??;
    Ok(pulled)
}

async fn open(path: PathBuf) -> Result<Layout, PullError> {
    let opened = tokio::task::spawn_blocking(move || Layout::open(&path)).await;
    opened.map_err(|_| PullError::Interrupted)?
}

/// A manifest by tag or digest; `said` is what whoever named it said about it.
async fn fetch(
    session: &Session<'_>,
    layout: &Layout,
    name: &str,
    said: Option<&Blob>,
) -> Result<Fetched, PullError> {
    let wanted: Option<Digest> = name.parse().ok();
    let kept = wanted.and_then(|digest| layout.read(&digest, manifest::LONGEST));
    let (bytes, media_type) = match kept {
        Some(bytes) => {
            session.allowed()?;
            (bytes, None)
        }
        None => download(session, name).await?,
    };
    let digest = Digest::of(&bytes);
    if let Some(wanted) = wanted.filter(|wanted| *wanted != digest) {
        let what = format!("the manifest {wanted}");
        return Err(PullError::Digest { registry: session.registry(), what, got: digest });
    }
    if let Some(said) = said.filter(|said| said.size != bytes.len() as u64) {
        return Err(PullError::Length {
            registry: session.registry(),
            what: format!("the manifest {digest}"),
            wanted: said.size,
            got: bytes.len().to_string(),
        });
    }
    let unusable = || of_manifest(session, name);
    if let Some(said) = said {
        // What the list calls it, the registry and the manifest have to call it too.
        Document::parse(&bytes, Some(&said.media_type)).map_err(unusable())?;
    }
    let document = Document::parse(&bytes, media_type.as_deref()).map_err(unusable())?;
    Ok(Fetched { digest, bytes, document })
}

async fn download(
    session: &Session<'_>,
    name: &str,
) -> Result<(Vec<u8>, Option<String>), PullError> {
    let mut patience = Patience::default();
    loop {
        match once(session, name).await {
            Ok(found) => return Ok(found),
            Err(fault) => patience.wait(fault, session).await?,
        }
    }
}

async fn once(session: &Session<'_>, name: &str) -> Result<(Vec<u8>, Option<String>), Fault> {
    let response = session.get(&format!("manifests/{name}"), Some(ACCEPT), 0).await?;
    let media_type = response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let media_type = media_type.and_then(|value| value.split(';').next());
    let media_type = media_type.map(|value| value.trim().to_ascii_lowercase());
    let said = response.headers().get("docker-content-digest").cloned();
    let what = format!("the manifest {name}");
    let bytes = session.body(response, &what, manifest::LONGEST).await?;
    let got = Digest::of(&bytes);
    let said =
        said.as_ref().and_then(|value| value.to_str().ok()).and_then(|text| text.parse().ok());
    match said {
        Some(said) if got != said => {
            Err(PullError::Digest { registry: session.registry(), what, got }.into())
        }
        _ => Ok((bytes, media_type)),
    }
}

fn of_manifest(
    session: &Session<'_>,
    what: &str,
) -> impl FnOnce(manifest::ManifestError) -> PullError + use<> {
    let (registry, what) = (session.registry(), what.to_owned());
    move |source| PullError::Manifest { registry, what, source }
}

fn platforms(entries: &[Entry]) -> String {
    let known = entries.iter().filter_map(|entry| entry.platform.as_ref());
    // Attestations stand there as images of no platform.
    let mut names: Vec<String> =
        known.filter(|platform| platform.os != "unknown").map(Platform::to_string).collect();
    names.sort();
    names.dedup();
    names.truncate(40);
    if names.is_empty() { "none that names its platform".into() } else { names.join(", ") }
}

fn configuration(layout: &Layout, image: &Image) -> Result<Config, manifest::ManifestError> {
    let bytes = layout.read(&image.config.digest, manifest::LONGEST);
    let gone = || manifest::ManifestError::Config("is not what it was a moment ago".into());
    Config::parse(&bytes.ok_or_else(gone)?, image)
}

/// That one of these was signed with the key.
async fn verify(
    session: &Session<'_>,
    layout: &Layout,
    key: &PublicKey,
    signed: impl Iterator<Item = Digest>,
) -> Result<(), PullError> {
    let mut none = SignatureError::None(String::new());
    for image in signed {
        match signatures(session, layout, key, &image).await? {
            Ok(()) => return Ok(()),
            Err(error) => none = error,
        }
    }
    Err(PullError::Signature { image: session.source.to_string(), source: none })
}

async fn signatures(
    session: &Session<'_>,
    layout: &Layout,
    key: &PublicKey,
    image: &Digest,
) -> Result<Result<(), SignatureError>, PullError> {
    let tag = signature::tag(image);
    let bytes = match download(session, &tag).await {
        Ok((bytes, _)) => bytes,
        Err(PullError::NotFound { .. }) => return Ok(Err(SignatureError::None(tag))),
        Err(error) => return Err(error),
    };
    let layers = match Document::parse(&bytes, None) {
        Ok(Document::Image(found)) => found.layers,
        Ok(Document::Index(_)) => return Ok(Err(SignatureError::Form("a list of images".into()))),
        Err(error) => return Ok(Err(SignatureError::Form(error.to_string()))),
    };
    let candidates = signature::candidates(&layers);
    for (payload, proof) in &candidates {
        blob::fetch(session, layout, payload).await?;
        let longest = usize::try_from(signature::LONGEST_PAYLOAD).unwrap_or(usize::MAX);
        let bytes = layout.read(&payload.digest, longest).unwrap_or_default();
        if signature::verifies(key, &bytes, proof, image) {
            return Ok(Ok(()));
        }
    }
    Ok(Err(SignatureError::Unsigned(candidates.len())))
}

/// What the layout's index says about it, and the name that it has there.
fn entry(request: &Pull<'_>, chosen: &Fetched, platform: &Platform) -> (String, Value) {
    let between = match request.version {
        Version::Tag(_) => ':',
        Version::Digest(_) => '@',
    };
    let name = format!("{}{between}{}", request.source, request.version);
    let said = serde_json::from_slice::<Value>(&chosen.bytes);
    let media_type = said.ok().and_then(|said| said["mediaType"].as_str().map(str::to_owned));
    let media_type = media_type.unwrap_or_else(|| OCI_IMAGE_MEDIA_TYPE.to_owned());
    let mut running = json!({"os": platform.os, "architecture": platform.architecture});
    if let Some(variant) = &platform.variant {
        running["variant"] = json!(variant);
    }
    let descriptor = json!({
        "mediaType": media_type,
        "digest": chosen.digest.to_string(),
        "size": chosen.bytes.len(),
        "platform": running,
    });
    (name, descriptor)
}
