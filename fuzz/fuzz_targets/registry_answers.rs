//! What a registry answers: manifests, lists, configurations and challenges. What was taken keeps its bounds.
#![no_main]

use challenge::Challenge;
use libfuzzer_sys::fuzz_target;
use manifest::{Config, Document, MOST_LAYERS};

// The crate itself would bring a TLS library, written in C, into every build of the fuzzer.
#[allow(dead_code, reason = "more of it is used where it belongs")]
#[path = "../../crates/registry/src/challenge.rs"]
mod challenge;
#[allow(dead_code, reason = "more of it is used where it belongs")]
#[path = "../../crates/registry/src/digest.rs"]
mod digest;
#[allow(dead_code, reason = "more of it is used where it belongs")]
#[path = "../../crates/registry/src/manifest.rs"]
mod manifest;
#[allow(dead_code, reason = "more of it is used where it belongs")]
#[path = "../../crates/registry/src/platform.rs"]
mod platform;
#[allow(dead_code, reason = "more of it is used where it belongs")]
#[path = "../../crates/registry/src/shown.rs"]
mod shown;

fuzz_target!(|data: &[u8]| {
    if let Ok(value) = std::str::from_utf8(data)
        && let Ok(Challenge::Bearer { realm, .. }) = challenge::parse([value].into_iter())
    {
        assert!(matches!(realm.scheme(), "http" | "https") && realm.has_host());
        assert!(realm.username().is_empty() && realm.query().is_none());
    }
    // The type that the registry calls it, and after a zero the document; and a configuration behind that.
    let mut parts = data.splitn(3, |&byte| byte == 0);
    let media_type = parts.next().and_then(|part| std::str::from_utf8(part).ok());
    let Some(document) = parts.next() else {
        drop(Document::parse(data, None));
        return;
    };
    match Document::parse(document, media_type) {
        Ok(Document::Image(image)) => {
            assert!(image.layers.len() <= MOST_LAYERS);
            if let Ok(total) = image.total() {
                assert!(image.layers.iter().all(|layer| layer.size <= total));
            }
            if let Ok(config) = Config::parse(parts.next().unwrap_or_default(), &image) {
                let text = config.platform.as_ref().map(ToString::to_string);
                assert_eq!(text.map(|text| text.parse()), config.platform.map(Ok));
            }
        }
        Ok(Document::Index(entries)) => {
            for platform in entries.iter().filter_map(|entry| entry.platform.as_ref()) {
                assert_eq!(platform.to_string().parse().as_ref(), Ok(platform));
            }
        }
        Err(error) => assert!(!error.to_string().contains(char::is_control)),
    }
});
