//! What goes wrong on the way, and what registries should not send.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use registry::{Digest, Platform, PullError};
use serde_json::{Value, json};

use crate::bench::{Bench, CONFIG, INDEX, Image, LAYER, MANIFEST, descriptor, digests};
use crate::server::{Reply, Server};

async fn with(image: &Image) -> (Server, Bench) {
    let server = Server::plain().await;
    image.push(&server, "1");
    let bench = Bench::new(&[&server]);
    (server, bench)
}

/// The path of the first layer.
fn first(image: &Image) -> String {
    format!("/v2/a/b/blobs/{}", Digest::of(&image.layers[0]))
}

#[tokio::test]
async fn an_image_comes_whole_by_tag_and_by_digest() {
    let image = Image::of(&[100_000, 3, 0]);
    let (server, bench) = with(&image).await;
    let pulled = bench.one(&server).await.unwrap();
    assert_eq!(pulled.manifest_digest, image.digest());
    let layers: Vec<Digest> = image.layers.iter().map(|layer| Digest::of(layer)).collect();
    assert_eq!(digests(&pulled.layers), layers);
    bench.assert_has(&image);
    let told = bench.told.blobs.lock().unwrap().clone();
    for layer in &image.layers {
        let length = layer.len() as u64;
        assert!(told.contains(&(Digest::of(layer), length, length)), "{told:?}");
    }
    let other = Bench::new(&[&server]);
    let again = other.pull(&server.host, "a/b", &image.digest().to_string()).await.unwrap();
    assert_eq!(again.manifest_digest, pulled.manifest_digest);
    other.assert_has(&image);
}

#[tokio::test]
async fn what_is_here_is_not_fetched_again() {
    let image = Image::of(&[1000]);
    let (server, bench) = with(&image).await;
    bench.one(&server).await.unwrap();
    let before = server.asked().len();
    bench.one(&server).await.unwrap();
    assert_eq!(server.asked().len(), before + 1, "the tag alone");
    bench.pull(&server.host, "a/b", &image.digest().to_string()).await.unwrap();
    assert_eq!(server.asked().len(), before + 1, "a digest needs nobody");
}

#[tokio::test]
async fn both_kinds_of_lists_are_selected_from() {
    let server = Server::plain().await;
    for (tag, kind) in
        [("oci", INDEX), ("docker", "application/vnd.docker.distribution.manifest.list.v2+json")]
    {
        let mut entries: Vec<Value> = Vec::new();
        for platform in ["linux/amd64", "linux/arm64", "linux/riscv64"] {
            let image = Image::new(platform, vec![platform.as_bytes().to_vec()]);
            image.push(&server, platform.rsplit('/').next().unwrap());
            let (os, architecture) = platform.split_once('/').unwrap();
            let mut entry = descriptor(MANIFEST, &image.manifest);
            entry["platform"] = json!({"os": os, "architecture": architecture});
            entries.push(entry);
        }
        let list = json!({"schemaVersion": 2, "mediaType": kind, "manifests": entries});
        server.put(&format!("/v2/a/b/manifests/{tag}"), kind, list.to_string());
        for platform in ["linux/amd64", "linux/riscv64"] {
            let mut bench = Bench::new(&[&server]);
            bench.platform = platform.parse().ok();
            let pulled = bench.pull(&server.host, "a/b", tag).await.unwrap();
            assert_eq!(pulled.platform.to_string(), platform);
            bench.assert_has(&Image::new(platform, vec![platform.as_bytes().to_vec()]));
            assert_eq!(pulled.index_digest, Some(Digest::of(list.to_string().as_bytes())));
        }
        let mut bench = Bench::new(&[&server]);
        bench.platform = "linux/s390x".parse().ok();
        let error = bench.pull(&server.host, "a/b", tag).await.unwrap_err().to_string();
        assert!(error.contains("linux/amd64, linux/arm64, linux/riscv64"), "{error}");
    }
}

#[tokio::test]
async fn a_single_image_of_another_platform_is_refused() {
    let server = Server::plain().await;
    Image::new("linux/s390x", vec![b"x".to_vec()]).push(&server, "1");
    let bench = Bench::new(&[&server]);
    let error = bench.one(&server).await.unwrap_err();
    assert!(matches!(error, PullError::Platform { .. }), "{error}");
    assert!(error.to_string().contains("linux/s390x"), "{error}");
}

#[tokio::test]
async fn a_list_whose_entry_is_another_kind_of_thing_is_refused() {
    let server = Server::plain().await;
    let image = Image::of(&[10]);
    image.push(&server, "1");
    let platform = Platform::host();
    let mut entry = descriptor(INDEX, &image.manifest);
    entry["platform"] = json!({"os": platform.os, "architecture": platform.architecture});
    let list = json!({"schemaVersion": 2, "manifests": [entry.clone()]}).to_string();
    server.put("/v2/a/b/manifests/list", INDEX, list);
    let bench = Bench::new(&[&server]);
    let error = bench.pull(&server.host, "a/b", "list").await.unwrap_err();
    assert!(matches!(error, PullError::Manifest { .. }), "{error}");
    entry["mediaType"] = json!(MANIFEST);
    entry["size"] = json!(image.manifest.len() + 1);
    let list = json!({"schemaVersion": 2, "manifests": [entry]}).to_string();
    server.put("/v2/a/b/manifests/list", INDEX, list);
    let error = bench.pull(&server.host, "a/b", "list").await.unwrap_err();
    assert!(matches!(error, PullError::Length { .. }), "{error}");
}

#[tokio::test]
async fn a_connection_that_breaks_is_gone_on_with() {
    let image = Image::of(&[1_000_000]);
    let (server, bench) = with(&image).await;
    let path = first(&image);
    server.answer(move |asked, usual| {
        let cut = (asked.path == path && asked.from.unwrap_or(0) < 600_000).then_some(200_000);
        usual.filter(|_| cut.is_some()).map(|usual| Reply { cut, ..usual })
    });
    bench.one(&server).await.unwrap();
    bench.assert_has(&image);
    let asked: Vec<usize> = server
        .asked()
        .iter()
        .filter(|asked| asked.path == first(&image))
        .map(|asked| asked.from.unwrap_or(0))
        .collect();
    assert!(asked.len() >= 4 && asked.is_sorted(), "{asked:?}");
    assert!(asked.windows(2).all(|pair| pair[1] > pair[0]), "{asked:?}");
}

#[tokio::test]
async fn a_registry_without_ranges_is_asked_from_the_beginning() {
    let image = Image::of(&[300_000]);
    let (server, bench) = with(&image).await;
    let (path, whole) = (first(&image), Bytes::from(image.layers[0].clone()));
    let tries = AtomicUsize::new(0);
    server.answer(move |asked, _| {
        let broken = asked.path == path && tries.fetch_add(1, Ordering::Relaxed) == 0;
        let cut = broken.then_some(150_000);
        (asked.path == path).then(|| Reply { cut, ..Reply::of(whole.clone()) })
    });
    bench.one(&server).await.unwrap();
    bench.assert_has(&image);
}

#[tokio::test]
async fn another_part_than_was_asked_for_is_not_taken_for_it() {
    let image = Image::of(&[300_000]);
    let (server, bench) = with(&image).await;
    let (path, whole) = (first(&image), Bytes::from(image.layers[0].clone()));
    server.answer(move |asked, usual| match asked.from {
        _ if asked.path != path => None,
        None => usual.map(|usual| Reply { cut: Some(100_000), ..usual }),
        Some(_) => {
            let reply = Reply { status: 206, ..Reply::of(whole.slice(5..)) };
            Some(reply.with("content-range", "bytes 5-299999/300000"))
        }
    });
    let error = bench.one(&server).await.unwrap_err();
    assert!(matches!(error, PullError::GaveUp { .. }), "{error}");
    assert!(!bench.blob(&Digest::of(&image.layers[0])).exists());
}

#[tokio::test]
async fn a_partial_blob_is_gone_on_with_and_a_wrong_one_is_not_believed() {
    let image = Image::of(&[400_000]);
    let digest = Digest::of(&image.layers[0]);
    let mut spoilt = image.layers[0][..150_000].to_vec();
    spoilt[77] ^= 1;
    let long = vec![0; 400_001];
    let all = [&image.layers[0][..150_000], &spoilt[..], &image.layers[0][..], &long[..]];
    for (partial, from) in all.into_iter().zip([Some(150_000), Some(150_000), None, None]) {
        let (server, bench) = with(&image).await;
        fs::create_dir_all(bench.layout().join("blobs/sha256")).unwrap();
        fs::write(bench.partial(&digest), partial).unwrap();
        bench.one(&server).await.unwrap();
        bench.assert_has(&image);
        let asked = server.asked();
        let ranges: Vec<_> = asked
            .iter()
            .filter(|asked| asked.path == first(&image))
            .map(|asked| asked.from)
            .collect();
        match partial.len() {
            400_000 => assert!(ranges.is_empty(), "all of it was there: {ranges:?}"),
            _ => assert_eq!(ranges[0], from),
        }
    }
}

#[tokio::test]
async fn a_partial_blob_that_is_a_link_is_not_written_through() {
    let image = Image::of(&[1000]);
    let (server, bench) = with(&image).await;
    let digest = Digest::of(&image.layers[0]);
    fs::create_dir_all(bench.layout().join("blobs/sha256")).unwrap();
    let other = bench.directory.path().join("other");
    fs::write(&other, b"mine").unwrap();
    std::os::unix::fs::symlink(&other, bench.partial(&digest)).unwrap();
    let error = bench.one(&server).await.unwrap_err();
    assert!(matches!(error, PullError::Disk { .. }), "{error}");
    assert_eq!(fs::read(&other).unwrap(), b"mine");
}

#[tokio::test]
async fn other_bytes_than_were_named_are_never_kept() {
    let image = Image::of(&[50_000]);
    let (server, bench) = with(&image).await;
    let (path, mut wrong) = (first(&image), image.layers[0].clone());
    wrong[49_999] ^= 1;
    server.put(&path, "application/octet-stream", wrong);
    let error = bench.one(&server).await.unwrap_err();
    assert!(matches!(error, PullError::Digest { .. }), "{error}");
    assert_eq!(bench.left(), [Digest::of(&image.config).hex()]);
    assert_eq!(server.count(&path), 1, "the registry has them wrong, and is not asked again");
}

#[tokio::test]
async fn more_bytes_than_were_said_are_not_written() {
    let image = Image::of(&[50_000]);
    let digest = Digest::of(&image.layers[0]);
    for endless in [true, false] {
        let (server, bench) = with(&image).await;
        let path = first(&image);
        server.answer(move |asked, usual| {
            let usual = usual.filter(|_| asked.path == path)?;
            let longer = [&usual.body[..], b"x"].concat();
            Some(match endless {
                true => Reply { endless, ..usual },
                false => Reply { chunked: true, body: longer.into(), ..usual },
            })
        });
        let error = bench.one(&server).await.unwrap_err();
        assert!(matches!(error, PullError::Length { .. }), "{error}");
        assert!(!bench.blob(&digest).exists() && !bench.partial(&digest).exists());
    }
}

#[tokio::test]
async fn a_length_that_is_not_the_one_that_was_said_ends_it_at_once() {
    let image = Image::of(&[50_000]);
    for length in [49_999, 50_001] {
        let (server, bench) = with(&image).await;
        let path = first(&image);
        server.answer(move |asked, usual| {
            let body = Bytes::from(vec![0; length]);
            usual.filter(|_| asked.path == path).map(|usual| Reply { body, ..usual })
        });
        let error = bench.one(&server).await.unwrap_err();
        assert!(matches!(error, PullError::Length { .. }), "{error}");
        assert_eq!(bench.left(), [Digest::of(&image.config).hex()]);
    }
}

#[tokio::test]
async fn a_body_that_always_ends_early_is_given_up_and_kept() {
    let image = Image::of(&[50_000]);
    let (server, bench) = with(&image).await;
    let path = first(&image);
    server.answer(move |asked, usual| {
        let usual = usual.filter(|_| asked.path == path)?;
        let most = if asked.from.is_some() { 0 } else { 20_000 };
        Some(Reply { body: usual.body.slice(..most), chunked: true, ..usual })
    });
    let error = bench.one(&server).await.unwrap_err();
    assert!(matches!(error, PullError::GaveUp { attempts: 6, .. }), "{error}");
    let digest = Digest::of(&image.layers[0]);
    assert_eq!(fs::read(bench.partial(&digest)).unwrap(), image.layers[0][..20_000]);
    assert!(!bench.blob(&digest).exists());
}

#[tokio::test]
async fn a_registry_that_is_busy_is_asked_later() {
    let image = Image::of(&[10]);
    let (server, bench) = with(&image).await;
    let tries = AtomicUsize::new(0);
    server.answer(move |asked, _| {
        let is_busy = asked.path.contains("blobs") && tries.fetch_add(1, Ordering::Relaxed) < 1;
        is_busy.then(|| Reply::new(429).with("retry-after", "1"))
    });
    let begun = Instant::now();
    bench.one(&server).await.unwrap();
    assert!(begun.elapsed() >= Duration::from_secs(1));
    for status in [500, 502, 503, 504] {
        let (server, bench) = with(&image).await;
        let tries = AtomicUsize::new(0);
        server.answer(move |_, _| {
            (tries.fetch_add(1, Ordering::Relaxed) < 2).then(|| Reply::new(status))
        });
        bench.one(&server).await.unwrap();
    }
}

#[tokio::test]
async fn nobody_waits_for_an_hour() {
    let image = Image::of(&[10]);
    let (server, bench) = with(&image).await;
    server.answer(|_, _| Some(Reply::new(429).with("retry-after", "3600")));
    let begun = Instant::now();
    let error = bench.one(&server).await.unwrap_err();
    assert!(matches!(error, PullError::Busy { .. }), "{error}");
    assert!(error.to_string().contains("3600 s") && begun.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn what_cannot_be_helped_is_not_tried_again() {
    let image = Image::of(&[10]);
    for status in [400, 403, 404, 410, 418] {
        let (server, bench) = with(&image).await;
        let body = r#"{"errors":[{"code":"X","message":"why \u001b[31mnot"}]}"#;
        server.answer(move |_, _| Some(Reply { status, ..Reply::of(body) }));
        let error = bench.one(&server).await.unwrap_err().to_string();
        assert!(error.contains("why [31mnot"), "{error}");
        assert_eq!(server.asked().len(), 1);
    }
    let (server, bench) = with(&image).await;
    let host = server.host.clone();
    drop(server);
    let begun = Instant::now();
    let error = bench.pull(&host, "a/b", "1").await.unwrap_err();
    assert!(matches!(error, PullError::Unreachable { .. }), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn a_manifest_is_what_its_digest_says() {
    let image = Image::of(&[10]);
    let (server, bench) = with(&image).await;
    let other = Image::of(&[11]);
    let digest = image.digest().to_string();
    server.put(&format!("/v2/a/b/manifests/{digest}"), MANIFEST, other.manifest.clone());
    let error = bench.pull(&server.host, "a/b", &digest).await.unwrap_err();
    assert!(matches!(error, PullError::Digest { .. }), "{error}");
    assert!(bench.left().is_empty());
    server.answer(move |_, usual| usual.map(|usual| usual.with("docker-content-digest", &digest)));
    other.push(&server, "1");
    let error = bench.one(&server).await.unwrap_err();
    assert!(matches!(error, PullError::Digest { .. }), "{error}");
}

#[tokio::test]
async fn a_manifest_without_end_is_not_read_to_its_end() {
    let image = Image::of(&[10]);
    let (server, bench) = with(&image).await;
    server.answer(|_, usual| usual.map(|usual| Reply { endless: true, ..usual }));
    let error = bench.one(&server).await.unwrap_err();
    assert!(matches!(error, PullError::Length { .. }), "{error}");
    let path = "/v2/a/b/manifests/1";
    server.answer(|_, _| None);
    server.put(path, MANIFEST, vec![b' '; registry::manifest::LONGEST + 1]);
    let error = bench.one(&server).await.unwrap_err();
    assert!(matches!(error, PullError::Length { .. }), "{error}");
}

#[tokio::test]
async fn what_is_no_image_is_refused_before_any_of_it_comes() {
    let image = Image::of(&[10]);
    let (server, bench) = with(&image).await;
    let mut manifest: Value = serde_json::from_slice(&image.manifest).unwrap();
    manifest["layers"][0]["mediaType"] =
        json!("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip");
    manifest["layers"][0]["urls"] = json!(["http://169.254.169.254/latest"]);
    server.put("/v2/a/b/manifests/1", MANIFEST, manifest.to_string());
    let error = bench.one(&server).await.unwrap_err();
    assert!(matches!(error, PullError::Manifest { .. }), "{error}");
    assert_eq!(server.count("blobs"), 0);
    for answer in ["<html>", "{}", "[]", ""] {
        server.put("/v2/a/b/manifests/1", "text/html", answer);
        let error = bench.one(&server).await.unwrap_err();
        assert!(matches!(error, PullError::Manifest { .. }), "{error}");
    }
}

#[tokio::test]
async fn an_image_that_is_larger_than_allowed_is_refused_before_any_of_it_comes() {
    let image = Image::of(&[10_000, 10_000]);
    let (server, mut bench) = with(&image).await;
    bench.limits.bytes = 19_999;
    let error = bench.one(&server).await.unwrap_err();
    assert!(matches!(error, PullError::Large { .. }), "{error}");
    assert_eq!(server.count("blobs"), 0);
}

#[tokio::test]
async fn a_configuration_that_is_of_another_image_is_refused() {
    let image = Image::of(&[10, 20]);
    let (server, bench) = with(&image).await;
    let config = Image::of(&[10]).config;
    let layers: Vec<Value> = image.layers.iter().map(|layer| descriptor(LAYER, layer)).collect();
    let manifest =
        json!({"schemaVersion": 2, "config": descriptor(CONFIG, &config), "layers": layers});
    server.put("/v2/a/b/manifests/1", MANIFEST, manifest.to_string());
    server.put(&format!("/v2/a/b/blobs/{}", Digest::of(&config)), "x/y", config);
    let error = bench.one(&server).await.unwrap_err();
    assert!(error.to_string().contains("has 1 layers where its manifest has 2"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 6)]
async fn layers_come_several_at_once_and_no_more() {
    let image = Image::of(&[64; 12]);
    let (server, mut bench) = with(&image).await;
    bench.limits.parallel = 4;
    let gate = Arc::new((AtomicUsize::new(0), AtomicUsize::new(0)));
    let seen = gate.clone();
    // The server's threads wait for each other: with fewer than four this would not end.
    let barrier = Arc::new(std::sync::Barrier::new(4));
    let config = Digest::of(&image.config).to_string();
    server.answer(move |asked, usual| {
        if asked.path.contains("blobs") && !asked.path.contains(&config) {
            let now = seen.0.fetch_add(1, Ordering::SeqCst) + 1;
            seen.1.fetch_max(now, Ordering::SeqCst);
            tokio::task::block_in_place(|| barrier.wait());
            seen.0.fetch_sub(1, Ordering::SeqCst);
        }
        usual
    });
    let host = server.host.clone();
    let runtime = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(bench.pull(&host, "a/b", "1")).unwrap();
        bench
    });
    let bench = tokio::task::spawn_blocking(move || runtime.join().unwrap()).await.unwrap();
    bench.assert_has(&image);
    assert_eq!(gate.1.load(Ordering::SeqCst), 4);
}

#[tokio::test]
async fn a_layer_that_is_there_twice_comes_once() {
    let layer = crate::bench::noise(9, 5000);
    let image = Image::new(&Platform::host().to_string(), vec![layer.clone(), layer]);
    let (server, bench) = with(&image).await;
    assert_eq!(bench.one(&server).await.unwrap().layers.len(), 2);
    assert_eq!(server.count(&first(&image)), 1);
}

#[tokio::test]
async fn the_index_names_what_was_pulled_and_keeps_the_others() {
    let image = Image::of(&[10]);
    let (server, bench) = with(&image).await;
    image.push(&server, "2");
    for tag in ["1", "2", "1"] {
        bench.pull(&server.host, "a/b", tag).await.unwrap();
    }
    let index = fs::read(bench.layout().join("index.json")).unwrap();
    let index: Value = serde_json::from_slice(&index).unwrap();
    let mut names: Vec<&str> = index["manifests"]
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| entry["annotations"]["org.opencontainers.image.ref.name"].as_str().unwrap())
        .collect();
    names.sort_unstable();
    assert_eq!(names, [format!("{}/a/b:1", server.host), format!("{}/a/b:2", server.host)]);
}
