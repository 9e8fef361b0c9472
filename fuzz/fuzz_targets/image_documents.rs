//! The documents of an image, and its name: any text is read as one kind at most, and what was read
//! can be used without another look.
#![no_main]

use image::oci::{Config, Index, Manifest, Platform};
use image::{ImageRef, Reference};
use libfuzzer_sys::fuzz_target;

const KINDS: [&str; 4] = [
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.docker.distribution.manifest.v2+json",
];

fn is_digest(text: &str) -> bool {
    text.len() == 71 && text.starts_with("sha256:") && !text.contains(['/', '.'])
}

fuzz_target!(|data: &[u8]| {
    let platform = Platform::of_guests();
    for kind in KINDS.into_iter().map(Some).chain([None]) {
        let (index, manifest) = (Index::parse(data, kind), Manifest::parse(data, kind));
        assert!(index.is_err() || manifest.is_err(), "two kinds at once");
        if let Ok(index) = index {
            assert!(index.manifests.iter().all(|entry| is_digest(&entry.digest)));
            for name in [None, Some("latest")] {
                if let Ok(chosen) = index.choose(&platform, name) {
                    let runs = chosen.platform.as_ref();
                    assert!(runs.is_none_or(|it| it.architecture == platform.architecture));
                }
            }
        }
        if let Ok(manifest) = manifest {
            assert!(!manifest.layers.is_empty() && is_digest(&manifest.config.digest));
            assert!(manifest.layers.iter().all(|layer| is_digest(&layer.digest)));
        }
    }
    for layers in 0..3 {
        match Config::parse(data, layers, &platform) {
            Ok(config) => {
                assert_eq!(config.diff_ids.len(), layers);
                assert!(config.diff_ids.iter().all(|digest| is_digest(digest)));
                assert!(config.image.working_dir.is_none_or(|dir| dir.starts_with('/')));
                assert!(config.image.env.iter().all(|(name, _)| !name.contains(['=', '\0'])));
            }
            Err(error) => assert!(!error.to_string().contains(['\n', '\x1b']), "{error}"),
        }
    }
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(reference) = text.parse::<Reference>() {
        let canonical = reference.to_string();
        assert_eq!(canonical.parse().as_ref(), Ok(&reference), "{canonical}");
        assert_eq!(reference.familiar().parse().as_ref(), Ok(&reference));
        assert!(canonical.is_ascii() && !reference.repository().contains(".."));
        assert!(!reference.registry().contains('/') && !reference.repository().starts_with('/'));
    }
    let _: Result<ImageRef, _> = text.parse();
});
